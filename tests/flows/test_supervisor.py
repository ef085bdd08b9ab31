"""Commands that end with whoever started them."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import psutil
import pytest
from checkouts import PATIENCE, REPOSITORY, becomes

from pipeline.flows.supervisor import Commands, supervised

pytestmark = pytest.mark.system


def run(folder: Path, script: str):
    return supervised(["sh", "-c", script], folder=folder, environment=os.environ)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("true", 0), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_status_is_that_of_the_command(tmp_path, script, status):
    with run(tmp_path, script) as process:
        assert process.wait() == status


def test_both_streams_arrive_in_order(tmp_path):
    with run(tmp_path, "echo one; echo two >&2; pwd") as process:
        assert [line.strip() for line in process.stdout] == ["one", "two", str(tmp_path)]


def test_an_exception_ends_the_command_and_what_it_started(tmp_path):
    with pytest.raises(ValueError), run(tmp_path, "sleep 600 & echo $!; sleep 600") as process:  # noqa: PT011
        pid = int(process.stdout.readline())
        raise ValueError
    assert becomes(lambda: not is_running(pid), 20.0)


def test_a_command_that_ignores_the_first_signal_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.flows.supervisor.GRACE_SECONDS", 1.0)  # of this side, which then kills the group
    with run(tmp_path, "trap '' TERM; echo $$; while true; do sleep 0.1; done") as process:
        pid = int(process.stdout.readline())
    assert becomes(lambda: not is_running(pid), 20.0)


def test_all_commands_end_together_and_none_begins_after(tmp_path):
    commands, ended, lines = Commands(), [], Queue()

    def work() -> None:
        with commands.running(["sh", "-c", "echo $$; sleep 600"], folder=tmp_path, environment=os.environ) as process:
            for line in process.stdout:
                lines.put(int(line))
            ended.append(process.wait())

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(work) for _ in range(2)]
        pids = [lines.get(timeout=PATIENCE) for _ in both]
        commands.end()
        assert not any(is_running(pid) for pid in pids)
        assert [future.result(20) for future in both] == [None, None]
        pool.submit(work).result(20)
    assert ended == [128 + signal.SIGTERM] * 3


def test_kill_9_of_the_starter_ends_the_command(tmp_path):
    script = (
        "import os; from pathlib import Path; from pipeline.flows.supervisor import supervised\n"
        "with supervised(['sh', '-c', 'echo $$; sleep 600'], folder=Path(), environment=os.environ) as process:\n"
        "    print(process.stdout.readline(), flush=True)\n"
        "    process.wait()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    starter = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    pid = int(starter.stdout.readline())
    assert is_running(pid)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    assert becomes(lambda: not is_running(pid), 20.0)
