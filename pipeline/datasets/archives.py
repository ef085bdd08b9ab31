"""Untrusted tar and zip archives: every member is checked before the first one is written."""

import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from pipeline.base.errors import PipelineError
from pipeline.datasets.fetch import check_free_space

LARGEST = 64 * 10**9  # bytes unpacked; VOC2012 has 2.1e9
MOST_MEMBERS = 1_000_000
COPY = 1 << 20  # bytes


class _Member(NamedTuple):
    name: str
    size: int  # bytes, as its header says
    kind: str  # file, folder, link or device
    info: Any  # the TarInfo or ZipInfo


def unpack(archive: Path, folder: Path, *, wanted: Callable[[str], bool] = bool) -> None:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive into `folder`.

    A member that would land outside `folder`, a link, a device, a name that comes twice, or more than LARGEST bytes
    refuse the archive before anything is written; tarfile's data filter alone would allow links, strip a leading slash,
    and refuse a member after others are written. Permissions, owners and times are not kept.

    Args:
        wanted: which files to write, by their name in the archive; all by default.

    Raises:
        PipelineError: the archive is missing, damaged, no archive, or dangerous, or the disk has no room for it.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for member in _checked(archive, folder, map(_zip_member, file.infolist()), wanted):
                    path = folder / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with file.open(member.info) as source, path.open("xb") as target:
                        _copy(archive, member, source, target)
        else:
            with tarfile.open(archive) as tar:
                for member in _checked(archive, folder, map(_tar_member, tar), wanted):
                    tar.extract(member.info, folder, set_attrs=False, filter="data")
    except FileNotFoundError:
        raise PipelineError(f"{archive}: missing; check the path in params.yaml") from None
    except RuntimeError as error:  # a password, or a compression that Python lacks
        raise PipelineError(f"{archive}: cannot be unpacked ({error}); pack it as plain zip or tar.gz") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk; a damaged gzip or bzip2 stream is an OSError without a number
        # tarfile lists every compression that it has tried, one a line.
        reason = " ".join(str(error).split(":")[0].split()) or type(error).__name__
        raise PipelineError(f"{archive}: no readable tar or zip archive ({reason}); fetch it again") from error


def _checked(archive: Path, folder: Path, members: Iterable[_Member], wanted: Callable[[str], bool]) -> list[_Member]:
    """The files to write. Each member is checked before the next is read, so that a bomb is not decompressed."""
    files, seen, total = [], set[PurePosixPath](), 0
    for number, member in enumerate(members, start=1):
        total += member.size
        path = PurePosixPath(member.name.replace("\\", "/"))
        if number > MOST_MEMBERS:
            raise _refusal(archive, f"it has more than {MOST_MEMBERS} members")
        if total > LARGEST:
            raise _refusal(archive, f"it unpacks to more than {LARGEST / 1e9:.0f} GB")
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", member.name) or "\0" in member.name:
            raise _refusal(archive, f"{member.name!r} would land outside the folder")
        if member.kind in ("link", "device"):
            raise _refusal(archive, f"{member.name!r} is a {member.kind}")
        if member.kind == "file" and path in seen:
            raise _refusal(archive, f"{member.name!r} is in it twice")
        seen.add(path)
        if member.kind == "file" and wanted(member.name):
            files.append(member)
    check_free_space(folder, sum(member.size for member in files), f"unpacking {archive.name}")
    return files


def _refusal(archive: Path, problem: str) -> PipelineError:
    return PipelineError(f"{archive}: {problem}; nothing of it is used; get the archive from its authors")


def _copy(archive: Path, member: _Member, source: IO[bytes], target: IO[bytes]) -> None:
    """Copy the size that the header says and no more, since a bomb may state a smaller one."""
    left = member.size
    while chunk := source.read(min(COPY, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise _refusal(archive, f"{member.name!r} is larger than its header says")
        target.write(chunk)
    if left:
        raise PipelineError(f"{archive}: {member.name!r} ends {left} bytes early; fetch the archive again")


def _tar_member(info: tarfile.TarInfo) -> _Member:
    kind = (
        "file" if info.isreg() else "folder" if info.isdir() else "link" if info.issym() or info.islnk() else "device"
    )
    return _Member(info.name, info.size, kind, info)


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    form = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
    name = info.filename.replace("\\", "/")  # old Windows tools write backslashes
    kind = "folder" if name.endswith("/") else "file"
    if form not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "link" if form == stat.S_IFLNK else "device"
    return _Member(name, info.file_size, kind, info)
