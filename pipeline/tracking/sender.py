"""Sends spools (tracker.py) to MLflow in a process of its own, so that no fault of a server stops a training.

A stage starts this file with a pipe to its standard input: each line names a spool to send from now on, and the end of
input says that the stage has ended. `gain sync` sends every finished spool that waits.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from pipeline.base.errors import LONGEST_QUOTED, PipelineError, warn
from pipeline.base.secrets import hide_secrets, without_secrets
from pipeline.tracking.server import connect, tracking_uri
from pipeline.tracking.spool import EVENTS, SentError, Spool
from pipeline.tracking.tracker import SPOOLS, WAITING

if TYPE_CHECKING:
    from mlflow import MlflowClient

RETRY_SECONDS = 5.0
POLL_SECONDS = 0.1
NICENESS = 5  # a training on the same machine uses every core


class Inbox:
    """Names of spools that arrive on standard input, and whether the writer is gone."""

    def __init__(self) -> None:
        self.gone = threading.Event()
        self._names: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def take(self) -> list[str]:
        """Names that arrived since the last call."""
        names: list[str] = []
        with suppress(Empty):
            while True:
                names.append(self._names.get_nowait())
        return names

    def _read(self) -> None:
        for line in sys.stdin:
            self._names.put(line.strip())
        self.gone.set()


class Delivery:
    """The spools that one sender has in hand."""

    def __init__(self) -> None:
        self.named: list[str] = []  # still to be opened
        self._spools: list[Spool] = []
        self._connection: tuple[MlflowClient, str] | None = None

    def advance(self, *, last: bool) -> None:
        """Send what has been written so far. What an error interrupts, the next call continues.

        Args:
            last: nothing more will be written.

        Raises:
            filelock.Timeout: another sender has a spool.
            Exception: any error of MLflow.
        """
        if self._connection is None:
            self._connection = connect()
        client, experiment_id = self._connection
        while self.named:
            with suppress(SentError):  # a stage beside this one was first
                self._spools.append(Spool(SPOOLS / self.named[0], watch=True))
            del self.named[0]
        for spool in list(self._spools):
            spool.send(client, experiment_id)
            if spool.finished or last:
                spool.close(client)
                self._spools.remove(spool)


def send_all(inbox: Inbox) -> bool:
    """Send spools as they are named and written, until the writer is gone; True if everything arrived."""
    from filelock import Timeout

    delivery, warned = Delivery(), False
    while True:
        last = inbox.gone.is_set()  # before the names are taken, so that none follows
        delivery.named += inbox.take()
        try:
            delivery.advance(last=last)
            if last:
                return True
        except Timeout:
            pass
        except Exception as error:  # a tracking server can fail in any way
            if not warned:
                _warn_of(error)
                warned = True
            if last:
                return False
            inbox.gone.wait(RETRY_SECONDS)
            continue
        time.sleep(POLL_SECONDS)


def num_waiting() -> int:
    """Number of finished spools that wait to be sent."""
    return len(_finished_spools())


def send_waiting() -> bool:
    """Send the finished spools that earlier senders could not, save those that another sender has in hand.

    A spool that MLflow refuses, as when its run was deleted, stays where it is and does not hold up the others.

    Returns:
        Whether MLflow took everything that it was sent.
    """
    finished = _finished_spools()
    if not finished:
        return True
    try:
        client, experiment_id = connect()
        taken = [_send_finished(folder, client, experiment_id) for folder in finished]
    except Exception as error:  # a tracking server can fail in any way
        _warn_of(error)
        return False
    return all(taken)


def _finished_spools() -> list[Path]:
    return [path.parent for path in sorted(SPOOLS.glob(f"*/{EVENTS}")) if _has_finished(path)]


def _has_finished(events: Path) -> bool:
    try:
        return '"kind": "finish"' in events.read_text(encoding="utf-8")
    except FileNotFoundError:  # another sender has just sent it
        return False


def _send_finished(folder: Path, client: "MlflowClient", experiment_id: str) -> bool:
    """Whether MLflow did not refuse the spool."""
    from filelock import Timeout

    try:
        spool = Spool(folder, watch=False)
    except (Timeout, SentError):
        return True
    try:
        spool.send(client, experiment_id)
        spool.close(client)
    except Exception as error:
        if not is_refusal(error):
            raise
        _warn_of(error, folder)
        return False
    finally:
        spool.release()
    return True


def is_refusal(error: Exception) -> bool:
    """Whether MLflow answered and said no, so that asking again is no use."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and 400 <= error.get_http_status_code() < 500


def main() -> int:
    """Send what is named on standard input, then what waits from earlier; the exit status."""
    hide_secrets()
    os.nice(NICENESS)
    if not sys.stdin.isatty():
        # A signal that ends a stage reaches its whole process group. This process ends with its input instead, so
        # that it can mark the run as killed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    return 0 if send_all(Inbox()) and send_waiting() else 1


def _warn_of(error: Exception, refused: Path | None = None) -> None:
    # The cause of a failed request, at the end of its message, says most.
    cause = " ".join(without_secrets(str(error)).split()).rpartition("Caused by ")[2]
    # Cut after it is cleaned: half an address is not known as one.
    reason = cause if isinstance(error, PipelineError) else cause[:LONGEST_QUOTED]
    where = without_secrets(tracking_uri())
    waiting = f"{refused} keeps its record; delete it to give it up" if refused else WAITING
    warn(f"MLflow at {where}: {reason}; {waiting}")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # unloading MLflow's modules in order takes a second, for which the stage would wait
