"""Background processes that outlive the command that started them, and are noted in .prefect/started.json.

A process is noted by its id and the time at which it started, so that another one that has the id since is left alone.
"""

import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from pipeline.base.files import write_json
from pipeline.base.processes import is_alive

HOME = Path(".prefect")
STARTED = HOME / "started.json"
STOP_SECONDS = 20.0  # between asking a process and its children to end, and killing those that are left


@dataclass(frozen=True)
class Started:
    """A process that was started in the background."""

    name: str
    pid: int
    created: float  # seconds since the epoch
    url: str = ""  # of a server's API

    def is_alive(self) -> bool:
        """Whether it still runs."""
        try:
            found = psutil.Process(self.pid)
            return found.create_time() == self.created and is_alive(found)
        except psutil.NoSuchProcess:
            return False


def start(name: str, command: Sequence[str], environment: Mapping[str, str], *, url: str = "") -> Started:
    """Start and note a process in a session of its own, so that Ctrl-C does not reach it; its log is .prefect/NAME.log.

    Args:
        environment: all of its environment variables.
    """
    HOME.mkdir(exist_ok=True)
    with log_file(name).open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    noted = Started(name, process.pid, psutil.Process(process.pid).create_time(), url)
    write_json(STARTED, [asdict(entry) for entry in [*started(), noted]])
    return noted


def started() -> list[Started]:
    """All that were started since the last `stop`, in order; some may have ended since."""
    if not STARTED.exists():
        return []
    return [Started(**entry) for entry in json.loads(STARTED.read_text(encoding="utf-8"))]


def stop() -> list[str]:
    """End all that were started and their children, the last one first; the names of those that were alive."""
    alive = [process for process in reversed(started()) if process.is_alive()]
    for process in alive:
        _end(process.pid)
    STARTED.unlink(missing_ok=True)
    return [process.name for process in alive]


def log_file(name: str) -> Path:
    """The output of the process with this name."""
    return HOME / f"{name.replace(' ', '-')}.log"


def _end(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        process.terminate()
        for member in psutil.wait_procs(family, timeout=STOP_SECONDS)[1]:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGKILL)
