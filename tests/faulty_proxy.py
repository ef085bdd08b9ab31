"""A server in front of another that can be slow, dead, out of disk, or lose the answers that it carries."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

ANSWER = {"Content-Type", "Content-Disposition", "X-Content-Type-Options"}  # headers that are passed on


class FaultyProxy:
    """Forwards every request to `upstream`, as far as its faults allow; change them at any time.

    `dead` closes every connection without an answer, `delay` seconds pass before each answer, `full` refuses uploads
    as a server whose disk is full does, and `losing` carries out every request that writes but answers it only when it
    comes again.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.dead = False
        self.delay = 0.0
        self.full = False
        self.losing = False
        self.lost: dict[tuple[str, bytes], str] = {}  # requests whose answers were lost, to the last word of their path


@contextmanager
def running_proxy(proxy: FaultyProxy) -> Iterator[str]:
    """The proxy's address while it serves on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
            pass

        def _forward(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(proxy.delay)
            if proxy.dead:
                self.close_connection = True
                return
            if proxy.full and self.command == "PUT":
                self._answer(500, b"[Errno 28] No space left on device", {})
                return
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            found = requests.request(
                self.command, f"{proxy.upstream}{self.path}", data=content, headers=headers, timeout=60
            )
            writes = self.command == "PUT" or self.path.endswith(("runs/create", "log-batch"))
            if writes and proxy.losing and (self.path, content) not in proxy.lost:
                proxy.lost[self.path, content] = self.path.rpartition("/")[2]
                self.close_connection = True
                return
            self._answer(found.status_code, found.content, {k: v for k, v in found.headers.items() if k in ANSWER})

        def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            # A client that was killed meanwhile wants no answer, and standard error is what the tests read.
            with suppress(BrokenPipeError, ConnectionResetError):
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815 -- the base class's names

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
