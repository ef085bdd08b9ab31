"""Files and folders written whole or not at all, and their digests."""

import csv
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.base.errors import PipelineError

HEAD = 4096  # bytes of a file that tell a web page
MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|title|script|meta|!--)", re.IGNORECASE)
XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|error)", re.IGNORECASE)
LFS_POINTER = b"version https://git-lfs"


def other_content(head: bytes) -> str | None:
    """What stands in place of an archive or of weights, by its first bytes: a page, an answer, or a pointer of Git LFS;
    None if none of these.
    """
    if MARKUP.match(head):
        return "an HTML page"
    if XML.match(head):
        return "an answer in XML"
    return "a pointer of Git LFS" if head.startswith(LFS_POINTER) else None


def content_other_than_a_file(path: Path) -> str | None:
    """The same for a file on disk.

    Raises:
        OSError: it cannot be read.
        PipelineError: it is a device or a pipe, of which nobody knows when, or whether, it ends.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise PipelineError(f"{path}: a device or a pipe, not a file; name a file")
    with path.open("rb") as file:
        return other_content(file.read(HEAD))


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it replaces `path` on success and is removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a folder beside `path` to fill; it replaces `path` on success and is removed on failure."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Indented JSON with a newline at the end."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """UTF-8 text."""
    with atomic_file(path) as partial:
        partial.write_text(content, encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per row under the columns of all rows, in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_numbers(path: Path) -> list[dict[str, float]]:
    """Rows of a CSV file of numbers, such as curves.csv; empty cells are left out."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes; a set of weights is known by it to runs, model versions and reports."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
