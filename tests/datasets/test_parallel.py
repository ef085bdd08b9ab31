"""A map over processes: what is left behind when one of them is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from checkouts import becomes

from pipeline.base.errors import PipelineError
from pipeline.datasets.parallel import parallel_map


def _kill_at_the_third(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.system
def test_killed_process_ends_the_others_however_many_items_wait() -> None:
    """`Executor.map` cancels what waits while the pool marks it as failed; the pool's thread died of that."""
    with (
        pytest.raises(PipelineError, match=r"one of 2 processes was killed.*rerun"),
        parallel_map(2) as map_items,
    ):
        list(map_items(_kill_at_the_third, range(20_000)))
    assert multiprocessing.active_children() == []


@pytest.mark.system
@pytest.mark.parametrize(("num_items", "chunksize"), [(0, 4), (7, 1), (7, 4), (8, 4)])
def test_results_come_in_order_whatever_the_chunks(num_items: int, chunksize: int) -> None:
    with parallel_map(2, chunksize=chunksize) as map_items:
        assert list(map_items(str, range(num_items))) == [str(item) for item in range(num_items)]


PROGRAM = """
import time
from pipeline.datasets.parallel import parallel_map

if __name__ == "__main__":
    with parallel_map(2) as map_items:
        for _ in map_items(time.sleep, [0] * 2 + [0.05] * 100_000):
            print("at work", flush=True)
"""


@pytest.mark.system
def test_processes_end_with_the_one_that_started_them_when_it_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"at work\n"
        children = psutil.Process(program.pid).children(recursive=True)
        program.kill()
    assert len(children) >= 2
    assert becomes(lambda: not any(child.is_running() for child in children))
