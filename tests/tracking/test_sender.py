"""The names of spools on their way into the sender process."""

import sys

import pytest

from pipeline.tracking.sender import Inbox

NAMES = [f"finetune-gain-{number}" for number in range(200_000)]


@pytest.fixture
def switching():
    """Threads take turns as often as Python lets them, which brings out what they do to one another."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_no_name_is_lost_while_names_are_taken(switching, monkeypatch):
    monkeypatch.setattr(sys, "stdin", (f"{name}\n" for name in NAMES))
    inbox, taken = Inbox(), []
    while not inbox.gone.is_set():
        taken += inbox.take()
    taken += inbox.take()
    assert taken == NAMES
