"""What a test starts ends with the test process, however that ends; a unit test starts nothing."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from checkouts import REPOSITORY, becomes

# It starts a process in a session of its own, as `gain flow` starts servers, and one that is forked, as a loader does.
STUBBORN = """
import multiprocessing, signal, subprocess, sys, time
import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell that runs tests in the background has ignored

@pytest.mark.system
def test_detached():
    shell = subprocess.Popen(["sh", "-c", "trap '' INT TERM; sleep 600 & echo pid=$!; wait"], start_new_session=True)
    fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
    fork.start()
    print(f"pid={shell.pid}\\npid={fork.pid}", flush=True)
    time.sleep(600)
"""
FORGETFUL = """
import subprocess
import processes, pytest

processes.PATIENCE_SECONDS = 0.0

@pytest.mark.system
def test_forgetful():
    subprocess.run(["sh", "-c", "sleep 600 &"])
"""
UNIT = """
import subprocess

def test_unit():
    subprocess.run(["true"])
"""


def started(folder: Path, content: str, *arguments: str) -> subprocess.Popen[str]:
    """Pytest on one file, with the plugin."""
    file = folder / "test_it.py"
    file.write_text(content)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = system\n")
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "processes", "-s", *arguments, str(file)]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_test_process_that_a_signal_ends(tmp_path, number):
    family: list[psutil.Process] = []
    with started(tmp_path, STUBBORN) as process:
        while len(family) < 3:
            line = process.stdout.readline()
            assert line
            family += [psutil.Process(int(pid)) for pid in re.findall(r"pid=(\d+)", line)]
        os.killpg(process.pid, number)
        process.stdout.read()
    assert becomes(lambda: not any(map(psutil.Process.is_running, family)))


@pytest.mark.system
def test_test_that_leaves_a_process_behind_fails(tmp_path):
    with started(tmp_path, FORGETFUL) as process:
        said = process.stdout.read()
    assert process.returncode == 1
    assert "the tests left processes behind: ['sleep 600']" in said


@pytest.mark.system
def test_unit_test_that_starts_a_process_fails(tmp_path):
    with started(tmp_path, UNIT) as process:
        said = process.stdout.read()
    assert process.returncode == 1
    assert "test_it.py::test_unit starts a process (subprocess.Popen); mark it with @pytest.mark.system" in said
