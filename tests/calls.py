"""Programs of the project called in this process: a process of their own takes seconds to import torch."""

import io
import logging
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import torch

from pipeline.tracking.tracker import Tracking


def called(
    script: Path, arguments: Sequence[str], folder: Path, env: Mapping[str, str], *, tracked: bool
) -> subprocess.CompletedProcess[str]:
    """What `python SCRIPT ARGUMENTS` says and returns in a folder and an environment.

    What a program changes for its whole process is as before afterwards. A program that is not `tracked` writes its
    record and starts nobody who sends it.
    """
    command = [str(script), *arguments]
    out, err = io.StringIO(), io.StringIO()
    with ExitStack() as stack:
        stack.enter_context(chdir(folder))
        stack.enter_context(mock.patch.object(sys, "argv", command))
        stack.enter_context(mock.patch.dict(os.environ, env, clear=True))
        stack.enter_context(_torch_as_before())
        stack.enter_context(_warnings_as_in_a_new_process())
        if not tracked:
            stack.enter_context(_no_sender())
        stack.enter_context(mock.patch.object(logging, "_logRecordFactory", logging.getLogRecordFactory()))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        code = _exit_code(script)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def _exit_code(script: Path) -> int:
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


@contextmanager
def _torch_as_before() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


@contextmanager
def _warnings_as_in_a_new_process() -> Iterator[None]:
    """Printed, but for those that Python hides from users; here they are errors otherwise, also those of packages."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        yield


@contextmanager
def _no_sender() -> Iterator[None]:
    names = ("__init__", "__exit__", "send")
    with mock.patch.multiple(Tracking, **dict.fromkeys(names, lambda *_: None)):
        yield
