"""MLflow's scoring server with limits around it, as `gain serve` runs it.

MLflow's own takes whatever comes: requests that wait for the network pile up until memory or their time is spent. Here
one request of a worker is computed at a time, some wait, and the rest is told at once to come back.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY = 48 * 2**20  # bytes of a request
MODEL_VARIABLE, WAITING_VARIABLE = "GAIN_SERVED_MODEL", "GAIN_SERVED_WAITING"
BODY_SECONDS = 30.0  # within which a request must have arrived


class Limits:
    """ASGI middleware for one path; all others pass.

    Args:
        application: answers a request.
        most_waiting: requests that may wait beside the one that is answered; more get 503 and Retry-After.
        retry_seconds: what Retry-After says.
        path: that is limited.
    """

    def __init__(
        self, application: Application, *, most_waiting: int, retry_seconds: int = 5, path: str = "/invocations"
    ) -> None:
        self._application = application
        self._path = path
        self._most_waiting, self._retry = most_waiting, retry_seconds
        self._inside = 0
        self._turn = asyncio.Semaphore(1)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._application(scope, receive, send)
        elif self._inside > self._most_waiting:
            text = f"{self._inside} requests are under way, and no more may wait; try again later"
            await refuse(send, 503, "TEMPORARILY_UNAVAILABLE", text, retry=self._retry)
        else:
            self._inside += 1
            try:
                await self._answer(scope, receive, send)
            finally:
                self._inside -= 1

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            body = await asyncio.wait_for(read_body(receive), BODY_SECONDS)
        except TimeoutError:
            await refuse(send, 408, "BAD_REQUEST", f"the request did not arrive within {BODY_SECONDS:.0f} s")
            return
        if body is None:
            await refuse(send, 413, "BAD_REQUEST", f"a request has at most {MAX_BODY} bytes")
            return
        failure: list[Message] = []

        async def hold_failure(message: Message) -> None:
            if failure or message.get("status") == 500:
                failure.append(message)
            else:
                await send(message)

        async with self._turn:
            try:
                await self._application(scope, _replayed(body, receive), hold_failure)
            except RecursionError:  # which Starlette calls a failure of its own, and raises again
                failure.clear()
                await refuse(send, 400, "BAD_REQUEST", "the request is nested too deep to be one")
            finally:
                for message in failure:
                    await send(message)


async def read_body(receive: Receive) -> bytes | None:
    """The body of a request; None if it has more than `MAX_BODY` bytes."""
    parts, length, more = [], 0, True
    while more:
        message = await receive()
        part = message.get("body", b"")
        parts.append(part)
        length += len(part)
        if length > MAX_BODY:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


async def refuse(send: Send, status: int, code: str, text: str, *, retry: int | None = None) -> None:
    """An answer as MLflow's server gives one to a request that it refuses."""
    headers = [(b"content-type", b"application/json")]
    if retry is not None:
        headers.append((b"retry-after", str(retry).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error_code": code, "message": text}).encode()})


def create() -> Application:
    """The application of one worker, for the model in the folder that the environment names."""
    from mlflow.pyfunc import load_model, scoring_server

    application = scoring_server.init(load_model(os.environ[MODEL_VARIABLE]))
    return Limits(application, most_waiting=int(os.environ[WAITING_VARIABLE]))


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What has been read, once; then what comes, such as the end of the connection."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
