"""A map over several processes; when one of them is killed, the error is one line."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

from pipeline.base.errors import PipelineError


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
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))  # a fork could inherit a held lock
    try:
        yield partial(pool.map, chunksize=chunksize)
    except BrokenProcessPool:
        raise PipelineError(
            f"one of {num_workers} processes was killed, as when memory runs out; free some and rerun"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
