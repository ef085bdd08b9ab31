"""Downloads from a local server that fails in the ways that servers fail."""

import hashlib
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

import pipeline.datasets.fetch
from pipeline.base.errors import PipelineError
from pipeline.base.sections import RemoteFile
from pipeline.datasets.fetch import check_file, check_free_space, copy_into, fetch, obtain

CONTENT = bytes(range(256)) * 512  # 128 KiB
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


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


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    """The server's address and the paths asked of it."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.requests, http.stopping, http.handle_error = [], threading.Event(), lambda *_: None
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{http.server_port}", requests=http.requests)
    http.stopping.set()
    http.shutdown()
    thread.join()
    http.server_close()


def test_file_is_fetched_and_leaves_nothing_beside_it(server, tmp_path):
    path = fetch([f"{server.url}/good/file"], tmp_path / "new" / "file", checksum=MD5)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_intact_file_is_not_fetched_again(server, tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    fetch([f"{server.url}/good/file"], tmp_path / "file", checksum=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    assert server.requests == []


def test_damaged_file_is_refused_and_kept(server, tmp_path, refused):
    (tmp_path / "file").write_bytes(CONTENT[:99])
    message = refused(fetch, [f"{server.url}/good/file"], tmp_path / "file", checksum=MD5)
    assert "damaged or another file" in message
    assert MD5.removeprefix("md5:") in message
    assert "delete it to fetch it again" in message
    assert (tmp_path / "file").read_bytes() == CONTENT[:99]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("other", "wrong checksum"),
        ("truncated", "broke before the end"),
        ("missing", "HTTP 404"),
        ("broken", "HTTP 503"),
        ("reset", "broke before the end"),
        ("circular", "redirects"),
    ],
)
def test_next_mirror_delivers_where_one_fails(server, tmp_path, refused, capsys, behaviour, reason):
    bad, good = f"{server.url}/{behaviour}", f"{server.url}/good"
    assert fetch([bad, good], tmp_path / "file", checksum=MD5).read_bytes() == CONTENT
    warnings = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"warning: {bad}: ") and reason in line for line in warnings)
    assert warnings
    message = refused(fetch, [bad, bad], tmp_path / "other", checksum=MD5)
    assert message.count(reason) == 2
    assert message.count(bad) == 2
    assert "download it by hand" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_mirror_without_the_file_is_asked_once_and_a_failing_one_twice(server, tmp_path, refused):
    refused(fetch, [f"{server.url}/missing", f"{server.url}/broken"], tmp_path / "file", checksum=MD5)
    assert server.requests == ["/missing", "/broken", "/broken"]


def test_failure_that_passes_is_tried_again(server, tmp_path):
    assert fetch([f"{server.url}/flaky"], tmp_path / "file", checksum=MD5).read_bytes() == CONTENT
    assert server.requests == ["/flaky", "/flaky"]


def test_redirect_is_followed(server, tmp_path):
    assert fetch([f"{server.url}/moved"], tmp_path / "file", checksum=MD5).read_bytes() == CONTENT


def test_silent_mirror_is_given_up(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline.datasets.fetch, "READ_SECONDS", 1.0)
    assert fetch([f"{server.url}/silent", f"{server.url}/good"], tmp_path / "file", checksum=MD5).exists()
    assert "/silent: no answer in time" in capsys.readouterr().err


def test_slow_mirror_is_given_up(server, tmp_path, monkeypatch, capsys):
    """Every byte comes in time, the file would in twenty minutes."""
    monkeypatch.setattr(pipeline.datasets.fetch, "PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(pipeline.datasets.fetch, "CHUNK", 8)
    started = time.monotonic()
    assert fetch([f"{server.url}/slow", f"{server.url}/good"], tmp_path / "file", checksum=MD5).exists()
    assert time.monotonic() - started < 120
    assert "bytes a second" in capsys.readouterr().err
    assert server.requests == ["/slow", "/good"]


@pytest.mark.parametrize("behaviour", ["good", "flaky"])
def test_bar_on_a_terminal_counts_the_bytes(server, tmp_path, monkeypatch, capsys, behaviour):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert fetch([f"{server.url}/{behaviour}"], tmp_path / "file", checksum=MD5).read_bytes() == CONTENT
    assert "fetching file" in capsys.readouterr().out


def test_mirror_that_does_not_exist_is_named(tmp_path, refused):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file"
        assert f"{url}: no connection" in refused(fetch, [url], tmp_path / "file", checksum=MD5)


def test_password_in_a_mirrors_address_is_shown_nowhere(tmp_path, refused, capsys):
    message = refused(fetch, ["http://user:secret@127.0.0.1:9/file"], tmp_path / "file", checksum=MD5)
    said = message + "".join(capsys.readouterr())
    assert "http://127.0.0.1:9/file" in said
    assert "secret" not in said


def test_no_mirror_at_all_is_said(tmp_path, refused):
    assert "no mirror to fetch it from" in refused(fetch, [], tmp_path / "file", checksum=MD5)


def test_rest_of_a_killed_download_is_not_taken_for_the_file(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(CONTENT[:7] + CONTENT)
    assert fetch([f"{server.url}/good"], tmp_path / "file", checksum=MD5).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_disk_without_room_is_refused_before_a_byte_is_fetched(server, tmp_path, refused):
    free = shutil.disk_usage(tmp_path).free
    message = refused(fetch, [f"{server.url}/good"], tmp_path / "a" / "file", checksum=MD5, size=2 * free)
    assert "fetching file needs" in message
    assert "are free" in message
    assert server.requests == []
    check_free_space(tmp_path, 1, "a byte")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_full_disk_stops_the_download_and_leaves_nothing(server, tmp_path, monkeypatch):
    import resource

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            fetch([f"{server.url}/good", f"{server.url}/good"], tmp_path / "file", checksum=MD5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert server.requests == ["/good"]  # another mirror would not help


def test_address_that_is_none_is_a_reason(tmp_path, refused):
    assert "no mirror delivered it (nonsense: " in refused(fetch, ["nonsense"], tmp_path / "file", checksum=MD5)


def test_file_at_hand_is_taken_where_it_is(tmp_path, refused):
    (tmp_path / "file").write_bytes(CONTENT)

    def at(name: str, checksum: str | None) -> RemoteFile:
        return RemoteFile(path=str(tmp_path / name), mirrors=[], checksum=checksum)

    assert obtain(at("file", MD5), "other") == obtain(at("file", None), "other") == tmp_path / "file"
    assert "none: missing; correct the path" in refused(obtain, at("none", None), "other")
    assert "set the checksum to null" in refused(obtain, at("file", f"md5:{'0' * 32}"), "other")


def test_fetched_file_is_kept_under_its_checksum(server, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.datasets.fetch, "CACHE", tmp_path)
    remote = RemoteFile(path=None, mirrors=[f"{server.url}/good"], checksum=MD5)
    assert obtain(remote, "w.pth") == obtain(remote, "w.pth") == tmp_path / MD5[4:12] / "w.pth"
    assert server.requests == ["/good"]


def test_file_is_copied_where_there_is_room(tmp_path, refused, monkeypatch):
    (tmp_path / "file").write_bytes(CONTENT)
    (tmp_path / "to").mkdir()
    copy_into(tmp_path / "to", tmp_path / "file")
    assert (tmp_path / "to" / "file").read_bytes() == CONTENT
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    assert "copying file needs" in refused(copy_into, tmp_path / "to", tmp_path / "file")


def test_checked_file_is_there_and_right(tmp_path):
    with pytest.raises(PipelineError, match="file: missing; get it"):
        check_file(tmp_path / "file", MD5, "get it")
    (tmp_path / "file").write_bytes(CONTENT)
    check_file(tmp_path / "file", MD5, "get it")
