"""Which file is taken, from where, and where it is kept."""

import hashlib
import shutil

import pytest
from failing_mirror import CONTENT, MD5, PAGE, REVERSED, SHA256, fetched

import pipeline.datasets.fetch
import pipeline.datasets.mirrors
from pipeline.base.errors import PipelineError
from pipeline.base.remote_files import RemoteFile
from pipeline.datasets.fetch import cached_path, check_file, check_free_space, copy_into, obtain


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


def test_no_mirror_at_all_is_said(tmp_path, refused):
    assert "no mirror to fetch it from" in refused(fetched, [], tmp_path / "file")


def test_disk_without_room_is_refused_before_a_byte_is_fetched(server, tmp_path, refused):
    free = shutil.disk_usage(tmp_path).free
    message = refused(fetched, [f"{server.url}/good"], tmp_path / "a" / "file", max_bytes=2 * free)
    assert "fetching file needs" in message
    assert "are free" in message
    assert server.requests == []
    check_free_space(tmp_path, 1, "a byte")


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


@pytest.mark.parametrize("checksum", [MD5, None])
def test_page_that_was_saved_as_the_file_is_called_that(tmp_path, refused, checksum):
    path = tmp_path / "fcn8s_from_caffe.pth"
    path.write_bytes(PAGE)
    file = RemoteFile(path=str(path), mirrors=[], checksum=checksum)
    assert refused(obtain, file, "w.pth").startswith(f"{path}: an HTML page, not the file: ")


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
