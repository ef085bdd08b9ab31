"""When the use of the machine is sampled: soon after the start, ten times a minute, and at the end of a training."""

import json
import time
from pathlib import Path

import pytest
from checkouts import becomes

from pipeline.tracking import system_metrics
from pipeline.tracking.system_metrics import FIRST_SECONDS, SAMPLE_SECONDS, SystemMetrics


def events(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


pytestmark = pytest.mark.system  # MLflow asks `uname` what the processor is


def test_there_are_ten_samples_in_a_minute_and_the_first_comes_at_once():
    assert FIRST_SECONDS <= 1
    assert 60 / SAMPLE_SECONDS >= 10


def test_samples_have_names_values_and_steps_and_go_on_where_a_file_ends(tmp_path, monkeypatch):
    path = tmp_path / "system.jsonl"
    monkeypatch.setattr(system_metrics, "SAMPLE_SECONDS", 0.1)
    monkeypatch.setattr(system_metrics, "FIRST_SECONDS", 0.1)
    watch = SystemMetrics(path)
    assert becomes(lambda: len(events(path)) >= 2)
    watch.stop()
    found = events(path)
    assert [event["step"] for event in found] == list(range(len(found)))
    for event in found:
        assert event["kind"] == "metrics"
        assert abs(event["time"] / 1000 - time.time()) < 600
        assert 0 <= event["values"]["system/cpu_utilization_percentage"] <= 100
        assert event["values"]["system/system_memory_usage_megabytes"] > 0
    SystemMetrics(path).stop()
    assert [event["step"] for event in events(path)] == list(range(len(found) + 1))


def test_training_that_ends_before_the_first_sample_has_one(tmp_path):
    path = tmp_path / "system.jsonl"
    SystemMetrics(path).stop()
    assert len(events(path)) == 1
