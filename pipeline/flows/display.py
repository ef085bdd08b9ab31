"""What a run shows of itself while it runs, sent by a thread: a server that is away holds no training up.

A stage is read line by line. Whoever waited for the server between two lines would let the pipe fill, and the stage
stop in its next `print`.
"""

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect import get_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from pipeline.base.secrets import without_secrets

RETRY_SECONDS = 5.0
LAST_SECONDS = 10.0  # for which the end of a run waits for what is still to be shown


class Display:
    """Sends the newest of each kind of news, in the order in which the kinds came up; older ones are dropped."""

    def __init__(self) -> None:
        self._news: dict[str, Callable[[], object]] = {}
        self._changed = threading.Condition()
        self._ended = False
        self._warned = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """News are sent while the block runs."""
        # In the context of the flow run, of which Prefect knows by its thread otherwise.
        thread = threading.Thread(target=contextvars.copy_context().run, args=(self._send,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()
            thread.join(LAST_SECONDS)

    def show(self, kind: str, send: Callable[[], object]) -> None:
        """Send news soon, unless newer ones of its kind come first; returns at once."""
        with self._changed:
            self._news[kind] = send
            self._changed.notify()

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._ended)
                if not self._news:
                    return
                kind = next(iter(self._news))
                send = self._news.pop(kind)
            try:
                with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):  # Prefect's own waits would grow to minutes
                    send()
            except Exception as error:  # a server can fail in any way
                self._warn_of(error)
                with self._changed:
                    self._news.setdefault(kind, send)
                    if self._ended:
                        return
                    self._changed.wait_for(lambda: self._ended, RETRY_SECONDS)

    def _warn_of(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            reason = without_secrets(" ".join(f"{type(error).__name__} {error}".split()))
            get_run_logger().warning("the Prefect server does not take progress (%s); the run goes on", reason)
