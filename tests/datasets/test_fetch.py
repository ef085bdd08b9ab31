"""Downloads from a local server that fails in the ways that servers fail."""

import hashlib
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

import pipeline.datasets.fetch
import pipeline.datasets.mirrors
from pipeline.base.errors import PipelineError
from pipeline.base.remote_files import RemoteFile
from pipeline.datasets.fetch import cached_path, check_file, check_free_space, copy_into, fetch, obtain
from pipeline.datasets.mirrors import problem_at_mirror

CONTENT = bytes(range(256)) * 512  # 128 KiB
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
LIMIT = 2 * len(CONTENT)  # bytes that a mirror may send
PAGE = b"\n<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"


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


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
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


def test_file_is_fetched_and_leaves_nothing_beside_it(server, tmp_path):
    path = fetched([f"{server.url}/good/file"], tmp_path / "new" / "file")
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_intact_file_is_not_fetched_again(server, tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    fetched([f"{server.url}/good/file"], tmp_path / "file", checksum=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    assert server.requests == []


def test_damaged_file_is_refused_and_kept(server, tmp_path, refused):
    (tmp_path / "file").write_bytes(CONTENT[:99])
    message = refused(fetched, [f"{server.url}/good/file"], tmp_path / "file")
    assert "damaged or another file" in message
    assert MD5.removeprefix("md5:") in message
    assert "delete it to fetch it again" in message
    assert (tmp_path / "file").read_bytes() == CONTENT[:99]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("other", f"wrong checksum, md5:{hashlib.md5(CONTENT[::-1]).hexdigest()}"),
        ("truncated", "broke before the end"),
        ("missing", "HTTP 404"),
        ("broken", "HTTP 503"),
        ("reset", "broke before the end"),
        ("circular", "redirects"),
    ],
)
def test_next_mirror_delivers_where_one_fails(server, tmp_path, refused, capsys, behaviour, reason):
    bad, good = f"{server.url}/{behaviour}", f"{server.url}/good"
    assert fetched([bad, good], tmp_path / "file").read_bytes() == CONTENT
    warnings = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"warning: {bad}: ") and reason in line for line in warnings)
    assert warnings
    message = refused(fetched, [bad, bad], tmp_path / "other")
    assert message.count(reason) == 2
    assert message.count(bad) == 2
    assert "download it by hand" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_mirror_without_the_file_is_asked_once_and_a_failing_one_twice(server, tmp_path, refused):
    refused(fetched, [f"{server.url}/missing", f"{server.url}/broken"], tmp_path / "file")
    assert server.requests == ["/missing", "/broken", "/broken"]


def test_failure_that_passes_is_tried_again(server, tmp_path):
    assert fetched([f"{server.url}/flaky"], tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == ["/flaky", "/flaky"]


def test_redirect_is_followed(server, tmp_path):
    assert fetched([f"{server.url}/moved"], tmp_path / "file").read_bytes() == CONTENT


def test_silent_mirror_is_given_up(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline.datasets.mirrors, "READ_SECONDS", 1.0)
    assert fetched([f"{server.url}/silent", f"{server.url}/good"], tmp_path / "file").exists()
    assert "/silent: no answer in time" in capsys.readouterr().err


def test_slow_mirror_is_given_up(server, tmp_path, monkeypatch, capsys):
    """Every byte comes in time, the file would in twenty minutes."""
    monkeypatch.setattr(pipeline.datasets.mirrors, "PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(pipeline.datasets.mirrors, "CHUNK", 8)
    started = time.monotonic()
    assert fetched([f"{server.url}/slow", f"{server.url}/good"], tmp_path / "file").exists()
    assert time.monotonic() - started < 120
    assert "bytes a second" in capsys.readouterr().err
    assert server.requests == ["/slow", "/good"]


@pytest.mark.parametrize("behaviour", ["good", "flaky"])
def test_bar_on_a_terminal_counts_the_bytes(server, tmp_path, monkeypatch, capsys, behaviour):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert fetched([f"{server.url}/{behaviour}"], tmp_path / "file").read_bytes() == CONTENT
    assert "fetching file" in capsys.readouterr().out


def test_mirror_that_does_not_exist_is_named(tmp_path, refused):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file"
        assert f"{url}: no connection" in refused(fetched, [url], tmp_path / "file")


def test_password_in_a_mirrors_address_is_shown_nowhere(tmp_path, refused, capsys):
    message = refused(fetched, ["http://user:secret@127.0.0.1:9/file"], tmp_path / "file")
    said = message + "".join(capsys.readouterr())
    assert "http://127.0.0.1:9/file" in said
    assert "secret" not in said


def test_no_mirror_at_all_is_said(tmp_path, refused):
    assert "no mirror to fetch it from" in refused(fetched, [], tmp_path / "file")


def test_rest_of_a_killed_download_is_not_taken_for_the_file(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(CONTENT[:7] + CONTENT)
    assert fetched([f"{server.url}/good"], tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_disk_without_room_is_refused_before_a_byte_is_fetched(server, tmp_path, refused):
    free = shutil.disk_usage(tmp_path).free
    message = refused(fetched, [f"{server.url}/good"], tmp_path / "a" / "file", max_bytes=2 * free)
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
            fetched([f"{server.url}/good", f"{server.url}/good"], tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert server.requests == ["/good"]  # another mirror would not help


def test_address_that_is_none_is_a_reason(tmp_path, refused):
    assert "no mirror delivered it (nonsense: " in refused(fetched, ["nonsense"], tmp_path / "file")


def test_file_at_hand_is_taken_where_it_is(tmp_path, refused):
    (tmp_path / "file").write_bytes(CONTENT)

    def at(name: str, checksum: str | None) -> RemoteFile:
        return RemoteFile(path=str(tmp_path / name), mirrors=[], checksum=checksum)

    assert obtain(at("file", MD5), "other") == obtain(at("file", None), "other") == tmp_path / "file"
    assert "none: missing; correct the path" in refused(obtain, at("none", None), "other")
    assert "set the checksum to null" in refused(obtain, at("file", f"md5:{'0' * 32}"), "other")


def test_fetched_file_is_kept_under_its_checksum(server, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.datasets.fetch, "CACHE", tmp_path)
    remote = RemoteFile(path=None, mirrors=[f"{server.url}/good"], checksum=MD5, max_gigabytes=0.1)
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
        check_file(tmp_path / "file", [MD5], "get it")
    (tmp_path / "file").write_bytes(CONTENT)
    check_file(tmp_path / "file", [MD5], "get it")


# ---- what is not the file, and how much of it is read ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("page", "an HTML page instead of the file: it has moved, or the server asks for a login"),
        ("xml", "an answer in XML instead of the file"),
        ("pointer", "a pointer of Git LFS instead of the file"),
    ],
)
def test_page_instead_of_the_file_is_called_that(server, tmp_path, refused, capsys, behaviour, said):
    url = f"{server.url}/{behaviour}"
    assert f"({url}: {said}" in refused(fetched, [url], tmp_path / "file")
    assert said in capsys.readouterr().err
    assert said in (problem_at_mirror(url, LIMIT) or "")
    assert server.requests == [f"/{behaviour}"] * 2  # asking again would not help
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checksum", [MD5, None])
def test_page_that_was_saved_as_the_file_is_called_that(tmp_path, refused, checksum):
    path = tmp_path / "fcn8s_from_caffe.pth"
    path.write_bytes(PAGE)
    file = RemoteFile(path=str(path), mirrors=[], checksum=checksum)
    assert refused(obtain, file, "w.pth").startswith(f"{path}: an HTML page, not the file: ")


def test_endless_answer_stops_at_the_limit(server, tmp_path, refused):
    url = f"{server.url}/endless"
    message = refused(fetched, [url], tmp_path / "file")
    assert f"({url}: it sends more than max_gigabytes: {LIMIT / 1e9:g} allows)" in message
    assert server.requests == ["/endless"]
    assert server.sent() < LIMIT + 64 * 2**20  # the rest is what the two sockets hold
    assert list(tmp_path.iterdir()) == []


def test_answer_that_says_it_is_too_large_is_not_read(server, tmp_path, refused):
    url = f"{server.url}/large"
    message = refused(fetched, [url], tmp_path / "file")
    assert f"({url}: it would send 1000000000000 bytes, more than max_gigabytes: {LIMIT / 1e9:g} allows)" in message
    assert server.requests == ["/large"]
    assert "it would send 1000000000000 bytes" in (problem_at_mirror(url, LIMIT) or "")


def test_file_of_exactly_the_limit_is_taken(server, tmp_path):
    assert fetched([f"{server.url}/good"], tmp_path / "file", max_bytes=len(CONTENT)).read_bytes() == CONTENT


def test_what_a_server_says_is_shown_without_control_characters(server, tmp_path, refused, capsys):
    message = refused(fetched, [f"{server.url}/coloured"], tmp_path / "file")
    assert f"{server.url}/coloured: HTTP 404 gone away" in message
    assert (message + capsys.readouterr().err.replace("\n", "")).isprintable()


# ---- several versions ------------------------------------------------------------------------------------------------

REVERSED = f"md5:{hashlib.md5(CONTENT[::-1]).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.mark.parametrize(("behaviour", "checksum", "name"), [("good", SHA256, "new"), ("other", REVERSED, "old")])
def test_each_version_is_accepted_kept_under_its_checksum_and_named(
    server, tmp_path, monkeypatch, capsys, behaviour, checksum, name
):
    monkeypatch.setattr(pipeline.datasets.fetch, "CACHE", tmp_path)
    versions = {"new": SHA256, "old": REVERSED}
    remote = RemoteFile(path=None, mirrors=[f"{server.url}/{behaviour}"], checksum=versions, max_gigabytes=0.1)
    path = cached_path(tmp_path, "w.pth", checksum)
    assert obtain(remote, "w.pth") == path
    assert capsys.readouterr().out == f"{path}: the version {name!r}, by its checksum\n"
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]
    assert obtain(remote, "w.pth") == path
    assert len(server.requests) == 1


def test_download_of_before_stays_valid(server, tmp_path, monkeypatch):
    """It lies in the folder of the checksum that params.yaml named alone."""
    monkeypatch.setattr(pipeline.datasets.fetch, "CACHE", tmp_path)
    path = tmp_path / REVERSED[4:12] / "w.pth"
    path.parent.mkdir()
    path.write_bytes(CONTENT[::-1])
    remote = RemoteFile(
        path=None, mirrors=[f"{server.url}/good"], checksum={"new": MD5, "old": REVERSED}, max_gigabytes=0.1
    )
    assert obtain(remote, "w.pth") == path
    assert server.requests == []


def test_file_of_none_of_the_versions_is_refused_with_all_of_them(tmp_path, refused):
    (tmp_path / "file").write_bytes(b"x")
    file = RemoteFile(path=str(tmp_path / "file"), mirrors=[], checksum={"new": SHA256, "old": REVERSED})
    message = refused(obtain, file, "w.pth")
    assert f"expected {SHA256} or {REVERSED}" in message
    assert f"md5:{hashlib.md5(b'x').hexdigest()}" in message
