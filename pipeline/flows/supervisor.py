"""Commands that end with the process that started them: a training whose flow was killed must not keep the GPU.

`supervised(COMMAND)` starts this file as a process in a session of its own. That process runs the command and watches
a pipe whose other end its parent holds: the pipe closes when the parent ends, kill -9 included, and the whole process
group is ended with it. DVC alone would leave the trainer behind.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

GRACE_SECONDS = 10.0  # between asking the process group to end and ending it
POLL_SECONDS = 0.05


@contextmanager
def supervised(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[str]"]:
    """The running command: standard output and error as one stream of lines, and `wait()` for its exit status.

    However the block ends, the process group ends with it: at once where the command has finished, else within
    `GRACE_SECONDS`. An exit status of 128 + N means that signal N ended the command.

    Args:
        folder: where the command runs.
        environment: all of its environment variables.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _abandon(process)
        with suppress(subprocess.TimeoutExpired):
            process.wait(2 * GRACE_SECONDS)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Commands:
    """Supervised commands, of which several may run at once, each in a thread of its own."""

    def __init__(self) -> None:
        self.ended = False
        self._running: set[subprocess.Popen[str]] = set()
        self._changed = threading.Condition()

    @contextmanager
    def running(
        self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str]
    ) -> Iterator["subprocess.Popen[str]"]:
        """As `supervised`; a command that begins after `end` is ended like the others."""
        begun: set[subprocess.Popen[str]] = set()
        try:
            with supervised(command, folder=folder, environment=environment) as process:
                begun.add(process)
                with self._changed:
                    self._running |= begun
                    if self.ended:
                        _abandon(process)
                yield process
        finally:
            with self._changed:
                self._running -= begun
                self._changed.notify_all()

    def end(self) -> None:
        """End all commands and wait until they have ended: within `GRACE_SECONDS`, or by force."""
        with self._changed:
            self.ended = True
            for process in self._running:
                _abandon(process)
            self._changed.wait_for(lambda: not self._running, 3 * GRACE_SECONDS)


def main(command: Sequence[str]) -> int:
    """Run `command` until it ends or standard input does; its exit status, or 128 + SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # They reach the command too, and this process must outlive it. A handler: the command would inherit SIG_IGN.
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    abandoned = threading.Event()
    threading.Thread(target=_watch_standard_input, args=(abandoned,), daemon=True).start()
    while child.poll() is None and not abandoned.is_set():
        time.sleep(POLL_SECONDS)
    if not abandoned.is_set():
        return child.returncode if child.returncode >= 0 else 128 - child.returncode
    group = os.getpgid(0)
    _signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and _others_in_group(group):
        child.poll()
        time.sleep(POLL_SECONDS)
    if _others_in_group(group):
        _signal_group(group, signal.SIGKILL)
    return 128 + signal.SIGTERM


def _abandon(process: "subprocess.Popen[str]") -> None:
    """Close the pipe that the supervising process watches."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()


def _watch_standard_input(abandoned: threading.Event) -> None:
    sys.stdin.read()
    abandoned.set()


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _others_in_group(group: int) -> bool:
    import psutil

    for process in psutil.process_iter(["pid", "status"]):
        with suppress(ProcessLookupError, psutil.Error):
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if alive and process.pid != os.getpid() and os.getpgid(process.pid) == group:
                return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
