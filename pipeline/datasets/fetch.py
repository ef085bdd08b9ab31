"""Files from mirrors: several are tried, the bytes are checked, and a file is in place only when it is whole."""

import hashlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline.base.errors import PipelineError
from pipeline.base.files import content_other_than_a_file
from pipeline.base.remote_files import RemoteFile
from pipeline.datasets.mirrors import GIGABYTE, download

CACHE = Path(".downloads")  # downloads are kept here for the next time that a stage runs
MARGIN = 1.05  # required free disk space, as a multiple of the size


def obtain(file: RemoteFile, name: str) -> Path:
    """A file that params.yaml describes: at the path that it names, else from a mirror and kept in CACHE as `name`.

    Where several checksums are accepted, it says the name of the one that the file has.

    Raises:
        PipelineError: it is missing, it is a web page, its checksum is none of those, or no mirror delivers it.
    """
    if file.path is None:
        assert file.max_gigabytes is not None  # RemoteFile requires it
        places = {checksum: cached_path(CACHE, name, checksum) for checksum in file.checksums}
        path, found = fetch(file.mirrors, places, max_bytes=int(file.max_gigabytes * GIGABYTE))
    else:
        path = Path(file.path).expanduser()
        if not path.is_file():
            raise PipelineError(
                f"{path}: missing; correct the path in params.yaml, or set it to null to fetch the file"
            )
        remedy = "correct the path in params.yaml, or set the checksum to null to skip this check"
        found = check_file(path, file.checksums, remedy)
    if version := file.checksums.get(found):
        print(f"{path}: the version {version!r}, by its checksum", flush=True)
    return path


def fetch(mirrors: Sequence[str], places: Mapping[str, Path], *, max_bytes: int) -> tuple[Path, str]:
    """A file from the first of `mirrors` that delivers it, and its checksum; left alone if it is there and intact.

    Args:
        places: where the file is kept, for each checksum that it may have, "md5:HEX" or "sha256:HEX".
        max_bytes: what a mirror may send; the disk must have room for it.

    Raises:
        PipelineError: a damaged file stands at its place, the disk has no room, or no mirror delivered; the message has
            one reason per mirror.
        OSError: the file cannot be written, for example on a full disk.
    """
    for checksum, path in places.items():
        if path.exists():
            check_file(path, [checksum], "delete it to fetch it again")
            return path, checksum
    first = next(iter(places.values()))
    if not mirrors:
        raise PipelineError(
            f"{first}: missing, and no mirror to fetch it from; name one in params.yaml, or add the file"
        )
    check_free_space(first.parent, max_bytes, f"fetching {first.name}")
    reasons = []
    for url in mirrors:
        found, reason = download(url, places, max_bytes)
        if found is not None:
            return places[found], found
        reasons.append(reason)
    raise PipelineError(
        f"{first.name}: no mirror delivered it ({'; '.join(reasons)}); try again later, name another mirror in "
        f"params.yaml, or download it by hand to {first}"
    )


def cached_path(cache: Path, name: str, checksum: str) -> Path:
    """Where a download is kept: in a folder of its checksum, so that versions of a file do not collide."""
    return cache / checksum.rpartition(":")[2][:8] / name


def check_file(path: Path, checksums: Collection[str], remedy: str) -> str:
    """Look at a file, and compare it with the checksums that it may have, "md5:HEX" or "sha256:HEX".

    Returns:
        The checksum that it has; "" if `checksums` is empty.

    Raises:
        PipelineError: it has none of them, it is a web page, or it cannot be read. The message ends with `remedy`.
    """
    found = {}
    try:
        if (content := content_other_than_a_file(path)) is not None:
            raise PipelineError(f"{path}: {content}, not the file: save what the page leads to; {remedy}")
        for algorithm in dict.fromkeys(checksum.split(":")[0] for checksum in checksums):
            with path.open("rb") as file:
                found[algorithm] = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
    except FileNotFoundError:
        raise PipelineError(f"{path}: missing; {remedy}") from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    if not checksums:
        return ""
    for checksum in checksums:
        if checksum in found.values():
            return checksum
    raise PipelineError(
        f"{path}: damaged or another file (it has {' and '.join(found.values())}, expected {' or '.join(checksums)}); "
        f"{remedy}"
    )


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
