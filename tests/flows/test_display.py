"""What a run shows reaches the server in time or later, and never holds the run up."""

import threading
import time

import httpx
import pytest
from checkouts import becomes

from pipeline.flows import display
from pipeline.flows.display import Display


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    said: list[str] = []

    class Logger:
        def warning(self, text, *values):
            said.append(text % values)

    monkeypatch.setattr(display, "get_run_logger", Logger)
    monkeypatch.setattr(display, "RETRY_SECONDS", 0.01)
    return said


def test_news_are_sent_and_the_last_of_a_kind_counts(warnings):
    shown, first = [], threading.Event()
    found = Display()
    with found.running():
        found.show("progress", lambda: (shown.append(0), first.wait(5)))
        assert becomes(lambda: shown == [0])
        for percent in (10, 20, 30):  # while the server takes its time
            found.show("progress", lambda percent=percent: shown.append(percent))
        found.show("device", lambda: shown.append("cpu"))
        first.set()
    assert shown == [0, 30, "cpu"]
    assert warnings == []


def test_a_server_that_is_away_costs_no_time_and_gets_the_news_when_it_is_back(warnings):
    shown, back = [], threading.Event()

    def send(what):
        if not back.is_set():
            raise httpx.ConnectError("connection refused by ann:hidden@server")
        shown.append(what)

    found = Display()
    with found.running():
        began = time.monotonic()
        found.show("device", lambda: send("cpu"))
        for percent in range(100):
            found.show("progress", lambda percent=percent: send(percent))
        assert time.monotonic() - began < 1.0
        assert becomes(lambda: len(warnings) == 1)
        back.set()
        assert becomes(lambda: len(shown) == 2)
    assert set(shown) == {"cpu", 99}
    assert len(warnings) == 1
    assert "ConnectError connection refused" in warnings[0]


def test_a_server_that_stays_away_does_not_keep_the_run_from_ending(warnings, monkeypatch):
    monkeypatch.setattr(display, "LAST_SECONDS", 0.1)
    found, stuck = Display(), threading.Event()
    began = time.monotonic()
    with found.running():
        found.show("progress", lambda: stuck.wait(30))
    assert time.monotonic() - began < 5.0
    stuck.set()
