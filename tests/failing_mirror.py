"""A local server that fails in the ways that mirrors fail, the file that it has, and how it is fetched."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

from pipeline.datasets.fetch import fetch

CONTENT = bytes(range(256)) * 512  # 128 KiB
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
LIMIT = 2 * len(CONTENT)  # bytes that a mirror may send
PAGE = b"\n<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"

REVERSED = f"md5:{hashlib.md5(CONTENT[::-1]).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def fetched(mirrors: list[str], path: Path, *, checksum: str = MD5, max_bytes: int = LIMIT) -> Path:
    """A file of one checksum, at its place."""
    found, known = fetch(mirrors, {checksum: path}, max_bytes=max_bytes)
    assert known == checksum
    return found


class Handler(BaseHTTPRequestHandler):
    """The path says how to behave."""

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        getattr(self, f"answer_{self.path.strip('/').split('/')[0]}")()

    def log_message(self, *arguments: object) -> None:
        pass

    def send(self, content: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def answer_good(self) -> None:
        self.send(CONTENT)

    def answer_other(self) -> None:
        self.send(CONTENT[::-1])

    def answer_truncated(self) -> None:
        self.send(CONTENT[:5000], len(CONTENT))

    def answer_missing(self) -> None:
        self.send_error(404)

    def answer_broken(self) -> None:
        self.send_error(503)

    def answer_flaky(self) -> None:
        first = self.server.requests.count(self.path) == 1
        self.send_error(503) if first else self.send(CONTENT)

    def answer_reset(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:1000])
        self.wfile.flush()
        # Without lingering, closing a socket with unread data resets the connection.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.connection.close()

    def answer_moved(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/good/file")
        self.end_headers()

    def answer_circular(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/circular")
        self.end_headers()

    def answer_page(self) -> None:
        self.send(PAGE)

    def answer_xml(self) -> None:
        self.send(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')

    def answer_pointer(self) -> None:
        self.send(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")

    def answer_coloured(self) -> None:
        self.send_response(404, "\x1b[31mgone\x1b[0m \x07away")
        self.end_headers()

    def answer_large(self) -> None:
        self.send(b"", 10**12)

    def answer_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.stopping.is_set():
            self.wfile.write(CONTENT)
            self.server.sent += len(CONTENT)

    def answer_silent(self) -> None:
        self.server.stopping.wait(60)

    def answer_slow(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        for byte in CONTENT:
            if self.server.stopping.wait(0.01):
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()


@contextmanager
def mirror() -> Iterator[SimpleNamespace]:
    """The server's address and the paths asked of it."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.requests, http.stopping, http.handle_error, http.sent = [], threading.Event(), lambda *_: None, 0
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{http.server_port}", requests=http.requests, sent=lambda: http.sent)
    http.stopping.set()
    http.shutdown()
    thread.join()
    http.server_close()
