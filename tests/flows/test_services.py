"""Addresses as they may be shown."""

import pytest

from pipeline.base.errors import PipelineError, without_credentials
from pipeline.flows.services import check_prefect_server


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:hidden@example.org:5000/x", "http://example.org:5000/x"),
        ("postgresql+psycopg2://ann:hid%40den@db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("cannot reach ssh://token@host/a and s3://bucket/key", "cannot reach ssh://host/a and s3://bucket/key"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("who@example.org wrote http://example.org", "who@example.org wrote http://example.org"),
    ],
)
def test_user_and_password_are_taken_out(text, shown):
    assert without_credentials(text) == shown


def test_reason_names_the_host_only(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://ann:hidden@127.0.0.1:9/api")
    with pytest.raises(PipelineError) as refusal:
        check_prefect_server()
    assert "the Prefect server at http://127.0.0.1:9/api: 127.0.0.1:9 cannot be reached" in str(refusal.value)
    assert "hidden" not in str(refusal.value)
