"""Files from mirrors: several are tried, the bytes are checked, and a file is in place only when it is whole."""

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pipeline.base.errors import PipelineError, warn, without_credentials
from pipeline.base.files import atomic_file
from pipeline.base.sections import RemoteFile

CACHE = Path(".downloads")  # downloads are kept here for the next time that a stage runs
TRIES = 2  # per mirror
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0  # without an answer before a mirror counts as dead
SLOWEST = 20_000.0  # bytes per second on average; a slower mirror is given up for the next one
PATIENCE_SECONDS = 60.0  # before the average counts
CHUNK = 4096  # bytes; the speed is checked after each
MARGIN = 1.05  # required free disk space, as a multiple of the size


class _MirrorError(Exception):
    """Why a mirror did not deliver; `final` where another try would not help."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def obtain(file: RemoteFile, name: str, size: int | None = None) -> Path:
    """A file that params.yaml describes: at the path that it names, else from a mirror and kept in CACHE as `name`.

    Args:
        size: in bytes, where it is known; the disk must have room for a download.

    Raises:
        PipelineError: it is missing, its checksum differs, or no mirror delivers it.
    """
    if file.path is None:
        assert file.checksum is not None  # RemoteFile requires it
        path = cached_path(CACHE, name, file.checksum)
        return fetch(file.mirrors, path, checksum=file.checksum, size=size)
    path = Path(file.path).expanduser()
    if not path.is_file():
        raise PipelineError(f"{path}: missing; correct the path in params.yaml, or set it to null to fetch the file")
    if file.checksum is not None:
        remedy = "correct the path in params.yaml, or set the checksum to null to skip this check"
        check_file(path, file.checksum, remedy)
    return path


def fetch(mirrors: Sequence[str], path: Path, *, checksum: str, size: int | None = None) -> Path:
    """`path`, downloaded from the first of `mirrors` that delivers; left alone if it is there and intact.

    The bytes arrive under a temporary name in the folder of `path` and are moved there once their checksum is right, so
    that a file of that name is always whole. HTTP and HTTPS; redirects are followed.

    Args:
        checksum: "md5:HEX" or "sha256:HEX".
        size: in bytes, where it is known; the disk must have room for it.

    Raises:
        PipelineError: a damaged file stands at `path`, the disk has no room, or no mirror delivered; the message has
            one reason per mirror.
        OSError: the file cannot be written, for example on a full disk.
    """
    if path.exists():
        check_file(path, checksum, "delete it to fetch it again")
        return path
    if not mirrors:
        raise PipelineError(
            f"{path}: missing, and no mirror to fetch it from; name one in params.yaml, or add the file"
        )
    if size is not None:
        check_free_space(path.parent, size, f"fetching {path.name}")
    reasons = []
    for url in mirrors:
        reason = _try_mirror(url, path, checksum)
        if reason is None:
            return path
        reasons.append(reason)
    raise PipelineError(
        f"{path.name}: no mirror delivered it ({'; '.join(reasons)}); try again later, name another mirror in "
        f"params.yaml, or download it by hand to {path}"
    )


def cached_path(cache: Path, name: str, checksum: str) -> Path:
    """Where a download is kept: in a folder of its checksum, so that versions of a file do not collide."""
    return cache / checksum.rpartition(":")[2][:8] / name


def check_file(path: Path, checksum: str, remedy: str) -> None:
    """Compare a file with its checksum, "md5:HEX" or "sha256:HEX".

    Raises:
        PipelineError: they differ, or the file cannot be read. The message ends with `remedy`.
    """
    algorithm, expected = checksum.split(":")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
    except FileNotFoundError:
        raise PipelineError(f"{path}: missing; {remedy}") from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    if found != expected:
        raise PipelineError(f"{path}: damaged or another file ({algorithm} {found}, expected {expected}); {remedy}")


def check_free_space(folder: Path, size: int, purpose: str) -> None:
    """Check that the disk under `folder` has room for `size` bytes and a margin.

    Raises:
        PipelineError: naming how much is needed and how much is free.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free, needed = shutil.disk_usage(existing).free, int(size * MARGIN)
    if free < needed:
        raise PipelineError(
            f"{folder}: {purpose} needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free; free some space"
        )


def copy_into(folder: Path, source: Path) -> None:
    """Copy a file under its own name.

    Raises:
        PipelineError: the disk has no room for it.
    """
    check_free_space(folder, source.stat().st_size, f"copying {source.name}")
    shutil.copyfile(source, folder / source.name)


def _try_mirror(url: str, path: Path, checksum: str) -> str | None:
    """Download `path`; the reason, without credentials, if that failed as often as it may."""
    reason = ""
    for tries_left in reversed(range(TRIES)):
        try:
            _download(url, path, checksum)
        except _MirrorError as error:
            reason = without_credentials(f"{url}: {error}")
            if error.final or not tries_left:
                break
            warn(f"{reason}; trying again")
        else:
            return None
    warn(reason)
    return reason


def _download(url: str, path: Path, checksum: str) -> None:
    import requests  # half a second that is not needed where the file is there

    timeout = (CONNECT_SECONDS, READ_SECONDS)
    headers = {"Accept-Encoding": "identity"}  # compressed on the fly, Content-Length would not be the file's size
    try:
        with atomic_file(path) as partial, requests.get(url, stream=True, timeout=timeout, headers=headers) as answer:
            answer.raise_for_status()
            total = int(answer.headers.get("Content-Length", 0)) or None
            with partial.open("wb") as file, _progress(path.name, total) as advance:
                found = _receive(answer.iter_content(CHUNK), file.write, advance, checksum.split(":")[0])
            if found != checksum:
                raise _MirrorError("other bytes than expected: wrong checksum")
    except (requests.RequestException, ValueError) as error:  # a ValueError is of an address that cannot be read
        raise _failure(error) from error


def _receive(
    chunks: Iterator[bytes], write: Callable[[bytes], object], advance: Callable[[int], None], algorithm: str
) -> str:
    """Write all `chunks`; their checksum, ALGORITHM:HEX. A mirror that is too slow is a _MirrorError."""
    digest, received, started = hashlib.new(algorithm), 0, time.monotonic()
    for chunk in chunks:
        write(chunk)
        digest.update(chunk)
        advance(len(chunk))
        received += len(chunk)
        elapsed = time.monotonic() - started
        if elapsed > PATIENCE_SECONDS and received < SLOWEST * elapsed:
            raise _MirrorError(f"too slow, {received / elapsed:.0f} bytes a second", final=True)
    return f"{algorithm}:{digest.hexdigest()}"


@contextmanager
def _progress(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yields a function that adds received bytes to a progress bar, where standard output is a terminal."""
    if not sys.stdout.isatty():
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console()) as progress:
        task = progress.add_task(f"fetching {name}", total=total)
        yield lambda size: progress.advance(task, size)


def _failure(error: Exception) -> _MirrorError:
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        status = error.response.status_code
        return _MirrorError(f"HTTP {status} {error.response.reason}".strip(), final=status < 500)
    if isinstance(error, exceptions.ChunkedEncodingError):
        return _MirrorError("the connection broke before the end of the file")
    if isinstance(error, exceptions.Timeout) or "timed out" in str(error):
        return _MirrorError("no answer in time")
    if isinstance(error, exceptions.ConnectionError):
        return _MirrorError("no connection")
    return _MirrorError(" ".join(str(error).split())[:200])
