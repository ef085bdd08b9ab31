"""A map over several processes; when one of them is killed, the error is one line."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from typing import Any

from pipeline.base.cores import usable_cores
from pipeline.base.errors import PipelineError

MOST_PROCESSES = 16  # more would wait for the disk


def most_workers() -> int:
    """How many processes to start: one for each usable core, at most MOST_PROCESSES."""
    return min(usable_cores(), MOST_PROCESSES)


@contextmanager
def parallel_map(num_workers: int, *, chunksize: int = 1) -> Iterator[Any]:
    """A `map` over `num_workers` processes, with results in order; after an error no further item is started.

    Args:
        num_workers: 0 and 1 use this process alone. Above 1, the calling script needs an `if __name__ == "__main__"`.
        chunksize: items that a process takes at a time.

    Raises:
        PipelineError: a process was killed.
    """
    if num_workers <= 1:
        yield map
        return
    context = get_context("spawn")  # a fork could inherit a held lock
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield partial(_in_order, pool, chunksize)
    except BrokenProcessPool:
        raise PipelineError(
            f"one of {num_workers} processes was killed, as when memory runs out; free some and rerun"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, chunksize: int, function: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[Any]:
    """The results, as of `pool.map`, which is not safe here.

    After an error it cancels what waits. If the pool itself is just failing that, its thread stops at a future that
    was cancelled, and never ends the other processes.
    """
    waiting = list(items)
    chunks = [waiting[first : first + chunksize] for first in range(0, len(waiting), chunksize)]
    for future in [pool.submit(_results, function, chunk) for chunk in chunks]:
        yield from future.result()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone; after kill -9 nobody else does, and it would wait on."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _results(function: Callable[[Any], Any], chunk: list[Any]) -> list[Any]:
    return [function(item) for item in chunk]
