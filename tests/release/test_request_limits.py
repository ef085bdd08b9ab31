"""Limits around MLflow's scoring server: how many requests wait, how long one may be, how deep it may be nested."""

import asyncio
import json
from typing import Any

import pytest

from pipeline.release import server
from pipeline.release.server import Limits


class Client:
    """One request to an application, and what was answered."""

    def __init__(self, body: bytes = b"{}", path: str = "/invocations", *, parts: int = 1) -> None:
        self.scope = {"type": "http", "path": path, "method": "POST"}
        size = -(-len(body) // parts) or 1
        self._parts = [body[start : start + size] for start in range(0, max(len(body), 1), size)]
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        part = self._parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(self._parts)}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def ask(self, application: Any) -> "Client":
        await application(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def message(self) -> str:
        return str(json.loads(self.sent[1]["body"])["message"])


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers 200 with the body that it was sent."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def test_a_request_arrives_whole_whatever_its_parts():
    client = asyncio.run(Client(b'{"a": 1}' * 100, parts=7).ask(Limits(echo, most_waiting=1)))
    assert client.status == 200
    assert client.sent[1]["body"] == b'{"a": 1}' * 100


def test_one_request_is_answered_at_a_time_and_no_more_wait_than_may():
    at_work, most = 0, 0

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.01)
        at_work -= 1
        await echo(scope, receive, send)

    async def ask_all() -> list[Client]:
        limits = Limits(slow, most_waiting=2, retry_seconds=7)
        clients = await asyncio.gather(*(Client().ask(limits) for _ in range(5)))
        return [*clients, await Client().ask(limits)]  # which finds the queue empty again

    clients = asyncio.run(ask_all())
    assert [client.status for client in clients] == [200, 200, 200, 503, 503, 200]
    assert most == 1
    assert (b"retry-after", b"7") in clients[3].sent[0]["headers"]
    assert "no more may wait; try again later" in clients[3].message


def test_other_paths_do_not_wait():
    async def ask_all() -> list[Client]:
        limits = Limits(echo, most_waiting=0)
        return await asyncio.gather(*(Client(path="/ping").ask(limits) for _ in range(5)))

    assert {client.status for client in asyncio.run(ask_all())} == {200}


def test_too_long_a_request_is_given_up_before_it_has_arrived(monkeypatch):
    monkeypatch.setattr(server, "MAX_BODY", 1000)
    client = Client(b"x" * 10_000, parts=100)
    assert asyncio.run(client.ask(Limits(echo, most_waiting=1))).status == 413
    assert client.message == "a request has at most 1000 bytes"
    assert len(client._parts) > 80


def test_request_that_never_arrives_frees_its_place(monkeypatch):
    monkeypatch.setattr(server, "BODY_SECONDS", 0.05)

    class Silent(Client):
        async def receive(self) -> dict[str, Any]:
            await asyncio.sleep(3600)
            raise AssertionError

    async def ask_both() -> tuple[int, int]:
        limits = Limits(echo, most_waiting=0)
        return (await Silent().ask(limits)).status, (await Client().ask(limits)).status

    assert asyncio.run(ask_both()) == (408, 200)


def test_request_nested_too_deep_is_refused():
    async def parse(scope: Any, receive: Any, send: Any) -> None:
        try:
            json.loads((await receive())["body"])
        except RecursionError:  # as Starlette does, which answers before it raises again
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"Internal Server Error"})
            raise

    client = asyncio.run(Client(b"[" * 100_000).ask(Limits(parse, most_waiting=1)))
    assert (client.status, client.message) == (400, "the request is nested too deep to be one")


def test_failure_of_the_application_frees_its_place():
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        raise ValueError

    async def ask_twice() -> list[Client]:
        limits, clients = Limits(fail, most_waiting=0), [Client(), Client()]
        for client in clients:
            with pytest.raises(ValueError):  # noqa: PT011 - the application's own
                await client.ask(limits)
        return clients

    assert [client.status for client in asyncio.run(ask_twice())] == [500, 500]
