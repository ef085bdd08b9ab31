"""Archives that are malicious, damaged, or sound."""

import gzip
import io
import os
import random
import shutil
import stat
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

import pipeline.datasets.archives
from pipeline.base.errors import PipelineError
from pipeline.datasets.archives import unpack

FILES = {"set/a.txt": b"first", "set/deep/b.txt": b"second" * 1000}


def tar(path: Path, files: dict[str, bytes], mode: str = "w", *, extra: tarfile.TarInfo | None = None) -> Path:
    with tarfile.open(path, mode) as archive:
        archive.addfile(_folder("set"))
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if extra is not None:
            archive.addfile(extra)
    return path


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def unpacked(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_files_come_out_as_they_went_in(tmp_path, mode):
    path = tmp_path / "archive"
    zipped(path, FILES) if mode == "zip" else tar(path, FILES, mode)
    unpack(path, tmp_path / "out")
    assert unpacked(tmp_path / "out") == FILES


def test_only_what_is_wanted_is_written(tmp_path):
    unpack(tar(tmp_path / "a.tar", FILES), tmp_path / "out", wanted=lambda name: name.startswith("set/deep/"))
    assert list(unpacked(tmp_path / "out")) == ["set/deep/b.txt"]


def test_backslashes_of_old_windows_tools_part_folders(tmp_path):
    unpack(zipped(tmp_path / "a.zip", {"set\\deep\\b.txt": b"x", "set\\empty\\": b""}), tmp_path / "out")
    assert unpacked(tmp_path / "out") == {"set/deep/b.txt": b"x"}


def test_colon_in_a_name_is_no_drive(tmp_path):
    unpack(tar(tmp_path / "a.tar", {"IMG 12:30.txt": b"x"}), tmp_path / "out")
    assert unpacked(tmp_path / "out") == {"IMG 12:30.txt": b"x"}


def test_zip_with_a_password_is_refused(tmp_path, refused):
    path = zipped(tmp_path / "a.zip", FILES)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.index(signature) + offset
        content[place] |= 1  # the flag that says encrypted
    path.write_bytes(content)
    assert "cannot be unpacked" in refused(unpack, path, tmp_path / "out")


@pytest.mark.parametrize("name", ["../evil", "set/../../evil", "/evil", "C:/evil", "..\\evil", "\\evil"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_name_outside_the_folder_refuses_the_whole_archive(tmp_path, refused, kind, name):
    files = {**FILES, name: b"harm"}
    path = tar(tmp_path / "a", files) if kind == "tar" else zipped(tmp_path / "a", files)
    message = refused(unpack, path, tmp_path / "deep" / "out")
    assert "would land outside the folder" in message
    assert str(path) in message
    assert not (tmp_path / "deep").exists()
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, refused, kind):
    info = tarfile.TarInfo("set/special")
    info.type, info.linkname = kind, "/etc/passwd"
    message = refused(unpack, tar(tmp_path / "a.tar", FILES, extra=info), tmp_path / "out")
    assert "'set/special' is a link or a device" in message
    assert not (tmp_path / "out").exists()


def test_link_in_a_zip_is_refused(tmp_path, refused):
    info = zipfile.ZipInfo("set/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "is a link" in refused(unpack, tmp_path / "a.zip", tmp_path / "out")


def test_name_that_comes_twice_is_refused(tmp_path, refused):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for content in (b"one", b"two"):
            info = tarfile.TarInfo("same")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert "'same' is in it twice" in refused(unpack, path, tmp_path / "out")


def test_bomb_is_refused_by_what_its_headers_promise(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(pipeline.datasets.archives, "LARGEST", 10**6)
    bomb = {"set/a": b"\0" * 400_000, "set/b": b"\0" * 400_000, "set/c": b"\0" * 400_000}
    for path in (zipped(tmp_path / "a.zip", bomb), tar(tmp_path / "a.tgz", bomb, "w:gz")):
        assert path.stat().st_size < 5000
        assert "unpacks to more than" in refused(unpack, path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_bomb_that_lies_about_its_size_is_stopped(tmp_path, refused):
    path = zipped(tmp_path / "a.zip", {"set/bomb": b"\0" * 10**7})
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = struct.pack("<I", 100)  # uncompressed size in the directory
    path.write_bytes(content)
    # zipfile stops at the promised size, and finds that the checksum is of more.
    assert "no readable tar or zip archive (Bad CRC-32" in refused(unpack, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_small_archive_with_gigabytes_in_it_is_refused_in_no_time(tmp_path, refused):
    """A gigabyte and more of zeros in a megabyte: its first header tells, and nothing is decompressed to find out."""
    path = tmp_path / "a.tar.gz"
    info = tarfile.TarInfo("zeros")
    info.size = 3 * 10**9
    with gzip.open(path, "wb") as file:
        file.write(info.tobuf())
        file.write(bytes(1 << 20))
    began = time.monotonic()
    assert "it unpacks to more than 200 times its size; nothing of it is used" in refused(
        unpack, path, tmp_path / "out"
    )
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["sparse", "gzip"])
def test_archive_whose_end_never_comes_is_given_up(tmp_path, refused, kind):
    path = tar(tmp_path / "a.tar", FILES)
    if kind == "sparse":
        with path.open("r+b") as file:
            file.truncate(10**12)
    else:
        path = tmp_path / "a.tar.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write((tmp_path / "a.tar").read_bytes())
            for _ in range(70):
                file.write(bytes(1 << 20))
    began = time.monotonic()
    message = refused(unpack, path, tmp_path / "out")
    assert "more than 64 MiB of nothing follow its last file" in message
    assert time.monotonic() - began < 10
    assert not (tmp_path / "out").exists()


def test_what_never_ends_or_never_begins_is_not_opened(tmp_path, refused):
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe", tmp_path):
        assert "a folder, a device or a pipe" in refused(unpack, path, tmp_path / "out")


def test_too_many_members_are_refused(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(pipeline.datasets.archives, "MOST_MEMBERS", 2)
    assert "more than 2 members" in refused(unpack, tar(tmp_path / "a.tar", FILES), tmp_path / "out")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_truncated_archive_is_refused_by_name(tmp_path, refused, mode):
    path = tmp_path / "archive"
    content = {"set/a": bytes(range(256)) * 300}
    zipped(path, content) if mode == "zip" else tar(path, content, mode)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert str(path) in refused(unpack, path, tmp_path / "out")


PICTURES = {f"set/{i}.jpg": random.Random(i).randbytes(3000) for i in range(36)}


def flipped(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "zip"])
def test_flipped_byte_changes_nothing_in_silence(tmp_path, mode):
    """At 60 places. A zip has no checksum of the dates and permissions of its files, which are not used anyway."""
    sound, path = tmp_path / "sound", tmp_path / "archive"
    zipped(sound, PICTURES) if mode == "zip" else tar(sound, PICTURES, mode)
    unharmed = 0
    for position in random.Random(0).sample(range(sound.stat().st_size), 60):
        shutil.copy(sound, path)
        flipped(path, position)
        try:
            unpack(path, tmp_path / "out")
        except PipelineError as error:
            assert str(error).startswith(f"{path}: ")
            assert not (tmp_path / "out").exists(), position
        else:
            unharmed += 1
            assert unpacked(tmp_path / "out") == PICTURES, position
            shutil.rmtree(tmp_path / "out")
    assert unharmed <= (5 if mode == "zip" else 0)


def test_every_byte_of_the_gzip_trailer_counts(tmp_path, refused):
    sound, path = tar(tmp_path / "sound", PICTURES, "w:gz"), tmp_path / "archive"
    for position in range(-8, 0):  # CRC-32 and length
        shutil.copy(sound, path)
        flipped(path, position)
        assert "no readable tar or zip archive" in refused(unpack, path, tmp_path / "out")


@pytest.mark.parametrize("member", [1, 21, 36])
def test_tar_with_a_broken_header_is_refused_and_not_cut_short(tmp_path, refused, member):
    path = tar(tmp_path / "a.tar", PICTURES)
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[member].offset
    flipped(path, offset + 150)  # of the checksum
    message = refused(unpack, path, tmp_path / "out")
    assert message == (f"{path}: no readable tar or zip archive (damaged header at byte {offset}); fetch it again")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_that_ends_between_two_members_is_refused(tmp_path, refused, mode):
    plain = tar(tmp_path / "plain", PICTURES)
    with tarfile.open(plain) as archive:
        offset = archive.getmembers()[20].offset
    content, path = plain.read_bytes()[:offset], tmp_path / "archive"
    path.write_bytes(content if mode == "w" else gzip.compress(content))
    assert f"it breaks off at byte {offset}" in refused(unpack, path, tmp_path / "out")


def test_damage_in_what_is_not_wanted_is_refused_too(tmp_path, refused):
    path = zipped(tmp_path / "a.zip", FILES)
    flipped(path, path.read_bytes().index(b"set/a.txt") + len("set/a.txt") + 1)
    assert "no readable tar" in refused(unpack, path, tmp_path / "out", wanted=lambda name: name.endswith("b.txt"))


def test_tar_whose_last_file_is_a_zip_is_a_tar(tmp_path):
    inner = zipped(tmp_path / "inner.zip", {"inner.txt": b"x"}).read_bytes()
    unpack(tar(tmp_path / "a.tar", {"set/inner.zip": inner}), tmp_path / "out")
    assert unpacked(tmp_path / "out") == {"set/inner.zip": inner}


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"neither")], ids=["empty", "text", "gzip"])
def test_what_is_no_archive_is_refused(tmp_path, refused, content):
    (tmp_path / "file").write_bytes(content)
    assert "no readable tar or zip archive" in refused(unpack, tmp_path / "file", tmp_path / "out")


def test_missing_archive_is_refused(tmp_path, refused):
    assert "missing; check the path" in refused(unpack, tmp_path / "file", tmp_path / "out")


def test_disk_without_room_is_refused_before_anything_is_written(tmp_path, refused, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    assert "unpacking a.tar needs" in refused(unpack, tar(tmp_path / "a.tar", FILES), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_permissions_are_not_taken_over(tmp_path):
    info = tarfile.TarInfo("set/program")
    info.mode = 0o4777
    unpack(tar(tmp_path / "a.tar", {}, extra=info), tmp_path / "out")
    assert (tmp_path / "out/set/program").stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize("name", ["mine.zip", "mine.tar.gz"])
def test_web_page_saved_as_an_archive_is_called_that(tmp_path, refused, name):
    (tmp_path / name).write_bytes(b"<!DOCTYPE html><html><body>moved</body></html>")
    assert f"{tmp_path / name}: an HTML page, no archive" in refused(unpack, tmp_path / name, tmp_path / "to")
