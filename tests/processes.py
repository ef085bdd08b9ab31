"""Which tests may start processes, and that no process outlives the tests: a plugin that conftest.py loads.

A test that starts one is marked `system`; `make check` leaves those out, and any other test that tries fails. Every
process that a test starts inherits the variable MARK, also a detached server and what that starts. A watchman, this
file run as a program, waits for the end of the test process, Ctrl-C and kill -9 included, and kills what is left.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

MARK = "GAIN_TEST_PROCESS"
STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")  # Python's audit events
POLL_SECONDS = 0.2
WATCH_SECONDS = 1.0  # looking through all processes costs milliseconds
PATIENCE_SECONDS = 30.0  # for what a test has stopped and not waited for

_unit_test = ""  # the running test that may start nothing; "" else


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def without_forks(found: list[psutil.Process]) -> list[psutil.Process]:
    """Without children of others among them: one that a process has just forked has its command line for a moment."""
    identities = {process.pid for process in found}
    kept = []
    for process in found:
        with suppress(psutil.Error):
            if process.ppid() not in identities:
                kept.append(process)
    return kept


def _ends_with_its_python(process: psutil.Process) -> bool:
    """Whether it is one of multiprocessing's helpers, which live as long as the interpreter that started them."""
    helpers = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
    with suppress(psutil.Error):
        return any(helper in argument for argument in process.cmdline() for helper in helpers)
    return True  # it has just ended


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that inherited a mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and is_alive(process):
                found.append(process)
    return found


def watch(parent: int, mark: str) -> None:
    """Wait until the process that started this one has ended, then kill what bears the mark and what it has forked."""
    forked: set[psutil.Process] = set()  # forks show the environment with which the test process began, unmarked
    while os.getppid() == parent:
        with suppress(psutil.Error):
            forked = {child for child in psutil.Process(parent).children() if child.pid != os.getpid()}
        time.sleep(WATCH_SECONDS)
    while found := [*marked(mark), *filter(is_alive, forked)]:
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(POLL_SECONDS)


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    # Git only reads here, in milliseconds.
    if _unit_test and event in STARTS and (not arguments or Path(os.fsdecode(arguments[0] or "")).name != "git"):
        raise RuntimeError(f"{_unit_test} starts a process ({event}); mark it with @pytest.mark.system")


def _guarded_start(process: BaseProcess, start: Callable[[BaseProcess], None] = BaseProcess.start) -> None:
    _refuse("os.fork", ())  # spawning, multiprocessing raises no event
    start(process)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global _unit_test
    _unit_test = "" if item.get_closest_marker("system") else item.nodeid
    try:
        return (yield)
    finally:
        _unit_test = ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    global _unit_test
    _unit_test = ""  # the last test of a process also ends what tests of the system shared
    return (yield)


def pytest_collection_finish(session: pytest.Session) -> None:
    sys.addaudithook(_refuse)
    BaseProcess.start = _guarded_start
    if session.config.option.collectonly or not any(item.get_closest_marker("system") for item in session.items):
        return
    mark = uuid4().hex
    command = [sys.executable, __file__, str(os.getpid()), mark]
    # In a session of its own, which Ctrl-C does not reach, and without the streams by which xdist talks to its workers.
    streams = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)]
    os.posix_spawn(sys.executable, command, os.environ, file_actions=streams, setsid=True)
    os.environ[MARK] = mark


def _left_behind(mark: str) -> list[psutil.Process]:
    return [p for p in marked(mark) if p.pid != os.getpid() and not _ends_with_its_python(p)]


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if request.session.exitstatus == pytest.ExitCode.INTERRUPTED:
        return  # the watchman sees to it
    deadline = time.monotonic() + PATIENCE_SECONDS
    while MARK in os.environ and (left := _left_behind(os.environ[MARK])):
        commands = []
        for process in left:
            with suppress(psutil.Error):
                commands.append(" ".join(process.cmdline()))
        assert time.monotonic() < deadline, f"the tests left processes behind: {commands}"
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
