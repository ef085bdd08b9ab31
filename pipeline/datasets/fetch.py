"""Files from elsewhere: several mirrors, checked bytes, in place only when whole. pooch does the transfer."""

import hashlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pipeline.base.errors import PipelineError, without_credentials

CACHE = Path(".downloads")  # what was fetched, so that it need not be again when a stage runs anew
TRIES = 2  # per mirror
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0  # of silence before a mirror counts as dead
SLOWEST = 20_000.0  # bytes per second on average; a mirror that drips is left for the next
PATIENCE_SECONDS = 60.0  # before the average counts
CHUNK = 4096  # bytes; a mirror is judged once a chunk
MARGIN = 1.05  # free disk space asked for, times what is needed


class _TooSlowError(Exception):
    """A mirror sends, but will not be done in any reasonable time."""


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
        OSError: the file cannot be written, as on a disk that fills up meanwhile.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in mirrors:
        for tries_left in range(TRIES - 1, -1, -1):
            try:
                _fetch(url, path, checksum)
            except _failures() as error:
                reason = without_credentials(f"{url}: {_reason(error)}")
                if not tries_left or not _worth_another_try(error):
                    break
                print(f"warning: {reason}; trying again", file=sys.stderr, flush=True)
            else:
                return path
        reasons.append(reason)
        print(f"warning: {reason}", file=sys.stderr, flush=True)
    raise PipelineError(
        f"{path.name}: no mirror delivered it ({'; '.join(reasons)}); try again later, name another mirror in "
        f"params.yaml, or download it by hand to {path}"
    )


def cached_path(cache: Path, name: str, checksum: str) -> Path:
    """Where a fetched file is kept: under its checksum, since another version of it may come."""
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
    """Refuse what the disk under `folder` has no room for; `size` in bytes.

    Raises:
        PipelineError: naming what is needed and what is free.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free, needed = shutil.disk_usage(existing).free, int(size * MARGIN)
    if free < needed:
        raise PipelineError(
            f"{folder}: {purpose} needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free; free some space"
        )


def _fetch(url: str, path: Path, checksum: str) -> None:
    import pooch  # with requests: a second that nobody needs who has the file

    pooch.get_logger().setLevel("WARNING")  # the warnings here say which mirror, and why
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a download that was killed
    try:
        with _Bar(path.name) as bar:
            downloader = pooch.HTTPDownloader(
                progressbar=bar,
                chunk_size=CHUNK,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                # A server that compresses on the fly would hide how much it has sent.
                headers={"Accept-Encoding": "identity"},
            )
            pooch.core.stream_download(url, partial / path.name, checksum, downloader)
        (partial / path.name).replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Bar:
    """pooch's progress bar, in rich's looks, and the judge of a mirror that drips.

    `total`, `update`, `reset` and `close` are what pooch asks for.
    """

    def __init__(self, name: str) -> None:
        self.total = 0
        self._name = name
        self._progress: Progress | None = None
        self._started, self._received = time.monotonic(), 0

    def __enter__(self) -> "_Bar":
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._progress = Progress(*columns, TimeRemainingColumn(), console=Console())
            self._task = self._progress.add_task(f"fetching {self._name}", total=None)
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, size: int) -> None:
        """Count `size` bytes more."""
        self._received += size
        if self._progress is not None:
            self._progress.update(self._task, advance=size, total=self.total or None)
        elapsed = time.monotonic() - self._started
        if elapsed > PATIENCE_SECONDS and self._received < SLOWEST * elapsed:
            raise _TooSlowError(f"sends {self._received / elapsed:.0f} bytes a second")

    def reset(self) -> None:
        """Start over: pooch counts what it has received anew at the end."""
        self._started, self._received = time.monotonic(), 0
        if self._progress is not None:
            self._progress.reset(self._task)

    def close(self) -> None:
        """Nothing: the bar ends with its context."""


def _failures() -> tuple[type[Exception], ...]:
    from requests.exceptions import RequestException

    return (RequestException, ValueError, _TooSlowError)  # pooch reports a wrong checksum as a ValueError


def _worth_another_try(error: Exception) -> bool:
    from requests.exceptions import HTTPError

    if isinstance(error, HTTPError) and error.response is not None:
        return bool(error.response.status_code >= 500)
    return not isinstance(error, _TooSlowError)


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.exceptions.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}".strip()
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke before the end of the file"
    if isinstance(error, requests.exceptions.ConnectionError):
        return "no answer in time" if "timed out" in str(error) else "no connection"
    if isinstance(error, ValueError) and "hash" in str(error):
        return "other bytes than expected: wrong checksum"
    return " ".join(str(error).split())[:200]
