"""A map over processes: what is left behind when one of them is killed."""

import multiprocessing
import os
import signal

import pytest

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
