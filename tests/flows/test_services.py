"""The servers that a run needs."""

import pytest

from pipeline.base.errors import PipelineError
from pipeline.flows.services import check_prefect_server


def test_reason_names_the_host_only(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://ann:hidden@127.0.0.1:9/api")
    with pytest.raises(PipelineError) as refusal:
        check_prefect_server()
    assert "the Prefect server at http://127.0.0.1:9/api: 127.0.0.1:9 cannot be reached" in str(refusal.value)
    assert "hidden" not in str(refusal.value)
