"""Senders forked from a process that has imported mlflow, which takes seconds; a stage starts a new Python."""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing import reduction
from pathlib import Path

from calls import called
from checkouts import REPOSITORY

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store", "pipeline.tracking.sender"])


class _Stream:
    """A file descriptor of this process that the child gets under a number of its own."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[object, ...]:
        return _detached, (reduction.DupFd(self.descriptor),)


def _detached(duplicate: object) -> int:
    return duplicate.detach()


def _send(streams: list[int], environment: dict[str, str], folder: str) -> None:
    from pipeline.tracking.sender import main

    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 -- multiprocessing has put the null device there
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os._exit(main())


class ForkedSender:
    """What the tracker uses of a subprocess.Popen of the sender."""

    def __init__(self, _command: object, *, stdin: int, text: bool) -> None:
        assert (stdin, text) == (subprocess.PIPE, True)
        ours, theirs = reversed(os.pipe())
        streams = [_Stream(descriptor) for descriptor in (theirs, 1, 2)]
        self._process = _FORKSERVER.Process(target=_send, args=(streams, dict(os.environ), str(Path.cwd())))
        self._process.start()
        os.close(theirs)
        self.stdin = os.fdopen(ours, "w")

    def communicate(self, timeout: float) -> None:
        self.stdin.close()
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired("sender", timeout)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        self._process.join()


def sync() -> subprocess.CompletedProcess[str]:
    """`gain sync` here and now, in this process."""
    script = REPOSITORY / "pipeline" / "cli" / "main.py"
    return called(script, ["sync"], Path.cwd(), dict(os.environ), tracked=True)
