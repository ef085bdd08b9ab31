"""Archives of strangers, unpacked so that they can do no harm: every name is checked before a byte is written."""

import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple

from pipeline.base.errors import PipelineError
from pipeline.datasets.fetch import check_free_space

LARGEST = 64 * 10**9  # bytes unpacked; VOC2012 has 2.1e9
MOST_MEMBERS = 1_000_000
COPY = 1 << 20  # bytes


class _Member(NamedTuple):
    name: str
    size: int  # bytes, as its header says
    kind: Literal["file", "folder", "link", "device"]
    info: Any  # what the library knows it by


def unpack(archive: Path, folder: Path, *, wanted: Callable[[str], bool] = bool) -> None:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive into `folder`.

    The list of members is checked as a whole first: a member that would land outside `folder`, a link, a device, two
    members of one name, or more than LARGEST bytes refuse the archive before anything is written. Permissions, owners
    and times are not taken over.

    Args:
        wanted: which files to write, by their name in the archive; all by default.

    Raises:
        PipelineError: the archive is missing, damaged, no archive, or dangerous, or the disk has no room for it.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                _write(archive, folder, _zip_members(file), file.open, wanted)
        else:
            with tarfile.open(archive) as tar:
                _write(archive, folder, _tar_members(tar), tar.extractfile, wanted)
    except FileNotFoundError:
        raise PipelineError(f"{archive}: missing; check the path in params.yaml") from None
    # A damaged stream of gzip, bzip2 or xz is an OSError without a number.
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise _unreadable(archive, error) from error
    except RuntimeError as error:  # a password, or a compression that Python lacks
        raise PipelineError(f"{archive}: cannot be unpacked ({error}); pack it as plain zip or tar.gz") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _unreadable(archive, error) from error


def _unreadable(archive: Path, error: Exception) -> PipelineError:
    # tarfile tells of every compression that it has tried, on a line each.
    reason = " ".join(str(error).split(":")[0].split()) or type(error).__name__
    return PipelineError(f"{archive}: no readable tar or zip archive ({reason}); fetch it again")


def _write(
    archive: Path,
    folder: Path,
    members: Iterable[_Member],
    open_member: Callable[[Any], IO[bytes] | None],
    wanted: Callable[[str], bool],
) -> None:
    files = [member for member in _checked(archive, members) if member.kind == "file" and wanted(member.name)]
    check_free_space(folder, sum(member.size for member in files), f"unpacking {archive.name}")
    for member in files:
        path = folder / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        source = open_member(member.info)
        assert source is not None  # None is for folders
        with source, path.open("xb") as target:
            _copy(archive, member, source, target)


def _copy(archive: Path, member: _Member, source: IO[bytes], target: IO[bytes]) -> None:
    """What the header promises and no more: a bomb lies about its size."""
    left = member.size
    while chunk := source.read(min(COPY, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise _refusal(archive, f"{member.name!r} is larger than its header says")
        target.write(chunk)
    if left:
        raise PipelineError(f"{archive}: {member.name!r} ends {left} bytes early; fetch the archive again")


def _checked(archive: Path, members: Iterable[_Member]) -> Iterator[_Member]:
    """The members, each checked before the library reads on: a bomb is not even skipped over."""
    total, seen = 0, set()
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
        yield member


def _refusal(archive: Path, problem: str) -> PipelineError:
    return PipelineError(f"{archive}: {problem}; nothing of it is used; get the archive from its authors")


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        kind: Literal["file", "folder", "link", "device"] = "device"
        if info.isreg() or info.isdir():
            kind = "file" if info.isreg() else "folder"
        elif info.issym() or info.islnk():
            kind = "link"
        yield _Member(info.name, info.size, kind, info)


def _zip_members(file: zipfile.ZipFile) -> Iterator[_Member]:
    for info in file.infolist():
        form = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
        name = info.filename.replace("\\", "/")  # old Windows tools write backslashes
        kind: Literal["file", "folder", "link", "device"] = "folder" if name.endswith("/") else "file"
        if form not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = "link" if form == stat.S_IFLNK else "device"
        yield _Member(name, info.file_size, kind, info)
