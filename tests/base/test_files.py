import csv
import hashlib
import json
import os
from pathlib import Path

import pytest

from pipeline.base.files import (
    atomic_file,
    atomic_folder,
    content_other_than_a_file,
    digest_file,
    read_numbers,
    write_csv,
    write_json,
    write_text,
)

DEV_FULL = Path("/dev/full")  # every write to it fails for want of space
needs_dev_full = pytest.mark.skipif(not DEV_FULL.exists(), reason="needs /dev/full")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pipe_or_device_in_place_of_a_file_is_refused_before_it_is_read(tmp_path, refused):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert refused(content_other_than_a_file, path) == f"{path}: a device or a pipe, not a file; name a file"


def test_atomic_file_replaces_the_old_content_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_file(path) as partial:
        partial.write_text("new")
        assert partial.parent == path.parent  # one file system, so that the replacement is one step
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_file_makes_the_folders(tmp_path):
    with atomic_file(tmp_path / "x" / "y" / "a.txt") as partial:
        partial.write_text("new")
    assert (tmp_path / "x" / "y" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_file_keeps_the_old_content_on_failure(tmp_path, failure):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(failure), atomic_file(path) as partial:
        partial.write_text("half of the n")
        raise failure
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_file_that_nobody_wrote_is_an_error_and_keeps_the_old_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_file(path):
        pass
    assert path.read_text() == "old"


def test_atomic_file_overwrites_what_a_killed_run_left(tmp_path):
    (tmp_path / "a.txt.partial").write_text("a long leftover of a killed run")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_file_does_not_write_through_a_link(tmp_path):
    """DVC may link files of its cache into the work tree: the cache must not change."""
    cached = tmp_path / "cached"
    cached.write_text("old")
    os.link(cached, tmp_path / "hard.txt")
    (tmp_path / "soft.txt").symlink_to(cached)
    for name in ("hard.txt", "soft.txt"):
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
    assert cached.read_text() == "old"


@needs_dev_full
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "new"),
        lambda path: write_json(path, {"new": 1}),
        lambda path: write_csv(path, [{"new": 1}]),
    ],
    ids=["text", "json", "csv"],
)
def test_full_disk_keeps_the_old_content(tmp_path, write):
    path = tmp_path / "a.txt"
    path.write_text("old")
    (tmp_path / "a.txt.partial").symlink_to(DEV_FULL)
    with pytest.raises(OSError, match="No space left"):
        write(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]
    assert DEV_FULL.exists()


def test_atomic_folder_replaces_the_old_content_at_the_end(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with atomic_folder(path) as partial:
        (partial / "new.txt").write_text("new")
        assert names(path) == ["old.txt"]
    assert names(path) == ["new.txt"]
    assert names(tmp_path) == ["data"]


def test_atomic_folder_makes_the_folders_above(tmp_path):
    with atomic_folder(tmp_path / "x" / "data") as partial:
        (partial / "new.txt").write_text("new")
    assert names(tmp_path / "x" / "data") == ["new.txt"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_atomic_folder_keeps_the_old_content_on_failure(tmp_path, failure):
    path = tmp_path / "data"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(failure), atomic_folder(path) as partial:
        (partial / "new.txt").write_text("new")
        raise failure
    assert (path / "old.txt").read_text() == "old"
    assert names(path) == ["old.txt"]
    assert names(tmp_path) == ["data"]


def test_atomic_folder_starts_empty_after_a_killed_run(tmp_path):
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial" / "leftover.txt").write_text("half")
    with atomic_folder(tmp_path / "data") as partial:
        assert names(partial) == []
    assert names(tmp_path / "data") == []


def test_json_is_indented_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1.5], "a": None})
    text = (tmp_path / "a.json").read_text()
    assert text == '{\n  "b": [\n    1.5\n  ],\n  "a": null\n}\n'
    assert json.loads(text) == {"b": [1.5], "a": None}


def test_json_that_cannot_be_written_keeps_the_old_content(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"path": Path()})
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "a.txt", "ω = 10\n")
    assert (tmp_path / "a.txt").read_bytes() == "ω = 10\n".encode()


def test_csv_has_the_columns_of_all_rows_in_order_of_appearance(tmp_path):
    write_csv(tmp_path / "a.csv", [{"b": 1, "a": 2.5}, {"a": 3, "c": "x,y"}, {}])
    assert (tmp_path / "a.csv").read_bytes() == b'b,a,c\n1,2.5,\n,3,"x,y"\n,,\n'
    with (tmp_path / "a.csv").open(newline="") as file:
        assert next(csv.DictReader(file)) == {"b": "1", "a": "2.5", "c": ""}


def test_digest_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    assert digest_file(tmp_path / "a.bin") == hashlib.sha256(b"abc").hexdigest()
    assert digest_file(tmp_path / "a.bin").startswith("ba7816bf8f01cfea")
    (tmp_path / "a.bin").write_bytes(b"abd")
    assert digest_file(tmp_path / "a.bin") != hashlib.sha256(b"abc").hexdigest()


def test_numbers_are_read_back_and_empty_cells_left_out(tmp_path):
    write_csv(tmp_path / "a.csv", [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "score": 1e-9}])
    assert read_numbers(tmp_path / "a.csv") == [{"epoch": 1.0, "loss": 0.5}, {"epoch": 2.0, "score": 1e-9}]
