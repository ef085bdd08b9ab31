"""What a message may show."""

import pytest

from pipeline.base.errors import warn, without_credentials


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


def test_warning_is_one_line_on_standard_error(capsys):
    warn("a: odd; look at it")
    assert capsys.readouterr() == ("", "warning: a: odd; look at it\n")
