"""Untrusted tar and zip archives: read to the end and checked before the first file is written."""

import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.base.errors import PipelineError
from pipeline.base.files import content_other_than_a_file
from pipeline.datasets.fetch import check_free_space

LARGEST = 64 * 10**9  # bytes unpacked; VOC2012 has 2.1e9
MOST_MEMBERS = 1_000_000
# An archive may unpack to this many times its size, and to SMALL bytes anyhow. Photographs hardly shrink; gzip's zeros
# shrink a thousand times, and reading the 64 GB of a small file takes minutes.
MOST_TIMES = 200
SMALL = 10**9
LONGEST_END = 64 << 20  # bytes of empty blocks after the last member; tar writes 10 KiB
CHUNK = 1 << 20  # bytes
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError)


class _Member(NamedTuple):
    name: str
    size: int  # bytes, as its header says
    is_file: bool
    is_special: bool  # a link or a device


def unpack(archive: Path, folder: Path, *, wanted: Callable[[str], bool] = bool) -> None:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive into `folder`.

    All is read before anything is written: headers, contents where they have a checksum (not in a plain tar), and the
    end. Refused are a member that would land outside `folder`, a link, a device, a name that comes twice, more than
    LARGEST bytes or than MOST_TIMES the archive's own, and an end of more than LONGEST_END; tarfile's data filter alone
    would allow links and strip a leading slash. Permissions, owners and times are not kept.

    Args:
        wanted: which files to write, by their name in the archive; all by default.

    Raises:
        PipelineError: the archive is missing, damaged, no archive, or dangerous, or the disk has no room for it.
    """
    if archive.exists() and not archive.is_file():
        raise PipelineError(f"{archive}: a folder, a device or a pipe; name an archive")
    try:
        if (content := content_other_than_a_file(archive)) is not None:
            raise PipelineError(f"{archive}: {content}, no archive: save what the page leads to")
        with archive.open("rb") as file:
            unpack_kind = _unpack_zip if file.read(2) == b"PK" else _unpack_tar
        unpack_kind(archive, folder, wanted)
    except FileNotFoundError:
        raise PipelineError(f"{archive}: missing; check the path in params.yaml") from None
    except RuntimeError as error:  # a password, or a compression that Python lacks
        raise PipelineError(f"{archive}: cannot be unpacked ({error}); pack it as plain zip or tar.gz") from error
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk; a damaged gzip or bzip2 stream is an OSError without a number
        # tarfile lists every compression that it has tried, one a line.
        reason = " ".join(str(error).split(":")[0].split()) or type(error).__name__
        raise PipelineError(f"{archive}: no readable tar or zip archive ({reason}); fetch it again") from error


def _unpack_zip(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    with zipfile.ZipFile(archive) as file:
        files = _checked(archive, folder, map(_zip_member, file.infolist()), wanted)
        for info in file.infolist():
            with file.open(info) as content:  # which compares the checksum at the end
                missing = info.file_size - sum(map(len, iter(partial(content.read, CHUNK), b"")))
            if missing:
                raise zipfile.BadZipFile(f"{info.filename!r} ends {missing} bytes early")
        for info in file.infolist():
            info.filename = _zip_member(info).name
            if info.filename in files:
                file.extract(info, folder)


def _unpack_tar(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    with tarfile.open(archive) as tar:
        files = _checked(archive, folder, map(_tar_member, tar), wanted)
        _check_end(tar)
        for info in tar:
            if info.name in files:
                tar.extract(info, folder, set_attrs=False, filter="data")


def _check_end(tar: tarfile.TarFile) -> None:
    """Two empty blocks or more must end the archive: tarfile takes a damaged header for the end as well."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    length = 0
    while rest := tar.fileobj.read(CHUNK):  # the checksums of gzip, bzip2 and xz come last
        length += len(rest)
        if rest.count(0) < len(rest):
            raise tarfile.ReadError(f"damaged header at byte {tar.offset}")
        if length > LONGEST_END:
            raise tarfile.ReadError(f"more than {LONGEST_END >> 20} MiB of nothing follow its last file")
    if length < 2 * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it breaks off at byte {tar.offset}")


def _checked(archive: Path, folder: Path, members: Iterable[_Member], wanted: Callable[[str], bool]) -> set[str]:
    """Names of the files to write. Each member is checked before the next is read, so that no bomb is decompressed."""
    sizes: dict[str, int] = {}
    seen, total = set[PurePosixPath](), 0
    most = max(SMALL, MOST_TIMES * archive.stat().st_size)
    for member in members:
        name, path = member.name, PurePosixPath(member.name.replace("\\", "/"))
        total += member.size
        problems = {
            f"it has more than {MOST_MEMBERS} members": len(seen) >= MOST_MEMBERS,
            f"it unpacks to more than {LARGEST / 1e9:.0f} GB": total > LARGEST,
            f"it unpacks to more than {MOST_TIMES} times its size": total > most,
            f"{name!r} would land outside the folder": path.is_absolute() or ".." in path.parts
            or bool(re.match("[A-Za-z]:", name)) or "\0" in name,
            f"{name!r} is a link or a device": member.is_special,
            f"{name!r} is in it twice": member.is_file and path in seen,
        }  # fmt: skip
        for problem in (text for text, holds in problems.items() if holds):
            raise PipelineError(f"{archive}: {problem}; nothing of it is used; get the archive from its authors")
        seen.add(path)
        if member.is_file and wanted(name):
            sizes[name] = member.size
    check_free_space(folder, sum(sizes.values()), f"unpacking {archive.name}")
    return set(sizes)


def _tar_member(info: tarfile.TarInfo) -> _Member:
    return _Member(info.name, info.size, info.isfile(), not (info.isfile() or info.isdir()))


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    form = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
    name = info.filename.replace("\\", "/")  # old Windows tools write backslashes
    return _Member(name, info.file_size, not name.endswith("/"), form not in (0, stat.S_IFREG, stat.S_IFDIR))
