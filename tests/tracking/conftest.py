"""A way to start senders that suits many short runs."""

import subprocess
from types import SimpleNamespace

import pytest


@pytest.fixture
def forked_senders(monkeypatch: pytest.MonkeyPatch) -> None:
    from forked_sender import ForkedSender

    names = {name: getattr(subprocess, name) for name in ("PIPE", "TimeoutExpired")}
    monkeypatch.setattr("pipeline.tracking.tracker.subprocess", SimpleNamespace(Popen=ForkedSender, **names))
