"""Background processes: noted, ended with their children, and never confused with others."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from checkouts import becomes

from pipeline.base.files import write_json
from pipeline.flows import processes

pytestmark = [
    pytest.mark.system,
    # What outlives the command that started it is not waited for.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]
PARENT = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(name: str, script: str) -> processes.Started:
    return processes.start(name, [sys.executable, "-c", script], os.environ)


def test_processes_are_noted_logged_and_ended_with_their_children(monkeypatch):
    monkeypatch.setattr(processes, "STOP_SECONDS", 1.0)
    first = start("worker of gpu", "import time; print('one'); time.sleep(600)")
    second = start("parent", PARENT)
    assert [process.name for process in processes.started()] == ["worker of gpu", "parent"]
    assert first.is_alive()
    assert processes.log_file("worker of gpu") == Path(".prefect/worker-of-gpu.log")
    assert becomes(lambda: processes.log_file("parent").read_text())
    child = psutil.Process(int(processes.log_file("parent").read_text()))
    assert processes.stop() == ["parent", "worker of gpu"]
    assert not first.is_alive()
    assert not second.is_alive()
    assert becomes(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 20.0)
    assert processes.started() == []
    assert processes.stop() == []


def test_a_process_that_ignores_the_first_signal_is_killed(monkeypatch):
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.5)
    process = start("stubborn", STUBBORN)
    assert becomes(lambda: processes.log_file("stubborn").read_text())
    assert processes.stop() == ["stubborn"]
    assert becomes(lambda: not process.is_alive(), 20.0)


def test_another_process_with_the_id_of_one_that_ended_is_left_alone():
    other = subprocess.Popen(["sleep", "600"])
    try:
        noted = {"name": "server", "pid": other.pid, "created": 1.0, "url": "http://127.0.0.1:4200/api"}
        write_json(processes.STARTED, [noted])
        assert processes.stop() == []
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
