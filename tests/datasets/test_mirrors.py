"""Downloads from a local server that fails in the ways that servers fail."""

import hashlib
import socket
import sys
import time

import pytest
from failing_mirror import CONTENT, LIMIT, fetched

import pipeline.datasets.fetch
import pipeline.datasets.mirrors
from pipeline.datasets.mirrors import problem_at_mirror


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


def test_rest_of_a_killed_download_is_not_taken_for_the_file(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(CONTENT[:7] + CONTENT)
    assert fetched([f"{server.url}/good"], tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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


@pytest.mark.parametrize(
    ("behaviour", "said"), [("endless", "it sends"), ("large", "it would send 1000000000000 bytes,")]
)
def test_answer_beyond_the_limit_is_given_up(server, tmp_path, refused, behaviour, said):
    url = f"{server.url}/{behaviour}"
    message = refused(fetched, [url], tmp_path / "file")
    assert f"({url}: {said} more than max_gigabytes: {LIMIT / 1e9:g} allows)" in message
    assert server.requests == [f"/{behaviour}"]
    assert server.sent() < LIMIT + 64 * 2**20  # the rest is what the two sockets hold
    assert list(tmp_path.iterdir()) == []


def test_doctor_hears_of_an_answer_that_says_it_is_too_large(server):
    assert "it would send 1000000000000 bytes" in (problem_at_mirror(f"{server.url}/large", LIMIT) or "")
