"""How a stage fails: one line and exit code 1, whatever went wrong that a user can act on."""

import errno
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import PipelineError
from stages import run_stage


class Broken(Dataset):
    """Its second image is missing."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 1:
            raise PipelineError("b.jpg: missing; add it")
        return index


def load_in_a_worker() -> None:
    list(DataLoader(Broken(), num_workers=1))


def raising(error: Exception):
    def stage(*_: object) -> None:
        raise error

    return stage


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        (raising(PipelineError("a: wrong; mend it")), "demo: error: a: wrong; mend it"),
        (lambda *_: load_in_a_worker(), "demo: error: b.jpg: missing; add it"),
        (raising(OSError(errno.ENOSPC, "full", "/x")), "demo: error: /x: the disk is full; free some space and rerun"),
        (raising(PermissionError(errno.EACCES, "Permission denied", "/x")), "demo: error: /x: Permission denied"),
        (raising(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore")), "demo: error: CUDA out of memory."),
        (lambda *_: torch.empty(10**15), "demo: error: [enforce fail at alloc_cpu.cpp"),
        (lambda *_: np.empty(10**15), "demo: error: Unable to allocate"),
        (raising(MemoryError()), "demo: error: out of memory; lower this stage's batch_size"),
    ],
)
def test_failure_is_one_line(monkeypatch, stage, line):
    monkeypatch.setattr(sys, "argv", ["demo"])
    with pytest.raises(SystemExit) as exit_:
        run_stage("demo", stage)
    assert str(exit_.value).startswith(line)
    assert "\n" not in str(exit_.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError("no number, no file"), KeyError("bug")])
def test_bug_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(sys, "argv", ["demo"])
    with pytest.raises(type(error)):
        run_stage("demo", raising(error))
