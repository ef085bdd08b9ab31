"""One mirror of a file: asked, watched while it sends, and given up where what comes is not the file."""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pipeline.base.errors import printable, warn
from pipeline.base.files import HEAD, other_content
from pipeline.base.secrets import without_secrets

if TYPE_CHECKING:
    import requests

TRIES = 2
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0  # without an answer before a mirror counts as dead
SLOWEST = 20_000.0  # bytes per second on average; a slower mirror is given up for the next one
PATIENCE_SECONDS = 60.0  # before the average counts
CHUNK = 4096  # bytes; the speed is checked after each
GIGABYTE = 1e9  # bytes


class _MirrorError(Exception):
    """Why a mirror did not deliver; `final` where another try would not help."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def download(url: str, places: Mapping[str, Path], max_bytes: int) -> tuple[str | None, str]:
    """Download a file; its checksum, or None and the reason, without credentials, if that failed as often as it may.

    The bytes arrive under a temporary name and are moved to their place once their checksum is right, so that a file of
    that name is always whole. HTTP and HTTPS; redirects are followed.

    Args:
        places: where the file goes, for each checksum that it may have, "md5:HEX" or "sha256:HEX".
        max_bytes: what the mirror may send.

    Raises:
        OSError: the file cannot be written, for example on a full disk.
    """
    reason = ""
    for tries_left in reversed(range(TRIES)):
        try:
            return _received(url, places, max_bytes), ""
        except _MirrorError as error:
            reason = f"{without_secrets(url)}: {_said(error)}"
            if error.final or not tries_left:
                break
            warn(f"{reason}; trying again")
    warn(reason)
    return None, reason


def problem_at_mirror(url: str, max_bytes: int) -> str | None:
    """Why a mirror would not deliver, as far as the beginning of its answer shows; None if it seems to."""
    try:
        with _asked(url) as answer:
            _check_answer(answer, max_bytes)
            _check_content(next(answer.iter_content(HEAD), b""))
    except _MirrorError as error:
        return _said(error)
    return None


def _said(error: Exception) -> str:
    return printable(without_secrets(str(error)))  # cut last: half an address is not known as one


def _received(url: str, places: Mapping[str, Path], max_bytes: int) -> str:
    """Put the file into its place among `places`; its checksum."""
    first = next(iter(places.values()))
    algorithms = {checksum.split(":")[0] for checksum in places}
    with _arriving(first) as partial, _asked(url) as answer:
        total = _check_answer(answer, max_bytes)
        with partial.open("wb") as file, _progress(first.name, total) as advance:
            digests = _digests(answer.iter_content(CHUNK), file.write, advance, algorithms, max_bytes)
            file.flush()
            os.fsync(file.fileno())
        found = next((checksum for checksum in places if checksum in digests), None)
        if found is None:
            raise _MirrorError(f"other bytes than expected: wrong checksum, {' and '.join(digests)}")
        places[found].parent.mkdir(parents=True, exist_ok=True)
        partial.replace(places[found])
    return found


@contextmanager
def _arriving(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` for what arrives; what is still there at the end goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _asked(url: str) -> Iterator["requests.Response"]:
    """The answer of a mirror, its content not yet read; whatever goes wrong until it is read is a _MirrorError."""
    import requests  # half a second that is not needed where the file is there

    timeout = (CONNECT_SECONDS, READ_SECONDS)
    headers = {"Accept-Encoding": "identity"}  # compressed on the fly, Content-Length would not be the file's size
    try:
        with requests.get(url, stream=True, timeout=timeout, headers=headers) as answer:
            yield answer
    except (requests.RequestException, ValueError) as error:  # a ValueError is of an address that cannot be read
        raise _failure(error) from error


def _check_answer(answer: "requests.Response", max_bytes: int) -> int | None:
    """Refuse a failure, and a file that is too large by its own account; otherwise its size, if it says one."""
    answer.raise_for_status()
    total = int(answer.headers.get("Content-Length", 0)) or None
    if total is not None and total > max_bytes:
        raise _MirrorError(f"it would send {total} bytes, more than {_allowed(max_bytes)}", final=True)
    return total


def _check_content(head: bytes) -> None:
    if (content := other_content(head)) is not None:
        raise _MirrorError(
            f"{content} instead of the file: it has moved, or the server asks for a login or a confirmation",
            final=True,
        )


def _allowed(max_bytes: int) -> str:
    return f"max_gigabytes: {max_bytes / GIGABYTE:g} allows"


def _digests(
    chunks: Iterator[bytes],
    write: Callable[[bytes], object],
    advance: Callable[[int], None],
    algorithms: Collection[str],
    max_bytes: int,
) -> list[str]:
    """Write all `chunks`; their checksums, each ALGORITHM:HEX.

    A web page, more than `max_bytes` and a mirror that is too slow are a _MirrorError.
    """
    digests, received, started = [hashlib.new(algorithm) for algorithm in algorithms], 0, time.monotonic()
    for chunk in chunks:
        if not received:
            _check_content(chunk)
        received += len(chunk)
        if received > max_bytes:
            raise _MirrorError(f"it sends more than {_allowed(max_bytes)}", final=True)
        write(chunk)
        for digest in digests:
            digest.update(chunk)
        advance(len(chunk))
        elapsed = time.monotonic() - started
        if elapsed > PATIENCE_SECONDS and received < SLOWEST * elapsed:
            raise _MirrorError(f"too slow, {received / elapsed:.0f} bytes a second", final=True)
    return [f"{digest.name}:{digest.hexdigest()}" for digest in digests]


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
    return _MirrorError(str(error))
