"""Runs with other parameters, each in its own clone: the checkout stays as it is, and several can run at once.

A clone lies in .runs/DIGEST, named by a digest of what goes into it, so that the same run, started again, continues
where it was stopped. It shares the checkout's DVC cache, run-cache included: stages that the parameters do not affect
are restored, not run. Its result is saved as a DVC experiment and pushed to the checkout, where `dvc exp show`, `diff`
and `apply` find it. `dvc exp run --temp` would start again from the first epoch.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from prefect import get_run_logger

from pipeline.base.errors import PipelineError
from pipeline.base.files import atomic_folder
from pipeline.base.overrides import explained, unused_changes
from pipeline.base.params import Document, load_params, read_document
from pipeline.base.profile import Params
from pipeline.flows import dag
from pipeline.tracking.tracker import SPOOLS

RUNS = Path(".runs")
KEPT_DAYS = 14  # of a clone whose run failed, so that a retry can go on in it
IDENTITY = {"user.name": "gain", "user.email": "gain@localhost"}  # of commits that no branch contains

SIMPLE = re.compile(r"([A-Za-z_][\w-]*(?:\.[\w-]+)*)=")  # an override of one key by its dotted name


@dataclass(frozen=True)
class Experiment:
    """Where a run with other parameters takes place, and what its result will be called."""

    name: str
    folder: Path
    params: Params


@contextmanager
def held_checkout(checkout: Path) -> Iterator[None]:
    """No other flow works in the checkout itself while the block runs; one that does is waited for."""
    with _held(checkout, checkout / RUNS / "checkout", checkout):
        yield


@contextmanager
def prepared_experiment(checkout: Path, overrides: Sequence[str], name: str = "") -> Iterator[Experiment]:
    """A clone of `checkout` at its commit, with what is changed there in tracked files and with `overrides` on top.

    It is this run's alone while the block runs: an equal run waits for its end, and then finds in the DVC cache what
    this one made.

    Args:
        overrides: as `dvc exp run -S` takes them, such as "seed=1" or "pretrain.num_epochs=2".
        name: of the DVC experiment; without one, it is named after its content.

    Raises:
        PipelineError: `checkout` is no Git repository or has no commit, or an override is no such thing, names an
            unknown key, changes a profile that is not chosen, or gives a value out of range.
    """
    commit = git(checkout, "rev-parse", "HEAD", hint="runs with other parameters need a Git checkout with a commit")
    identity = [part for name, value in IDENTITY.items() for part in ("-c", f"{name}={value}")]
    changed = git(checkout, *identity, "stash", "create")  # a commit of the tracked files; the checkout is not touched
    tree = git(checkout, "rev-parse", f"{changed or 'HEAD'}^{{tree}}")
    digest = hashlib.sha256(json.dumps([commit, tree, list(overrides)]).encode()).hexdigest()[:12]
    folder = checkout / RUNS / digest
    with _held(checkout, folder, folder):
        remove_old_clones(checkout)
        if not folder.exists():
            with atomic_folder(folder) as partial:
                _clone(checkout, partial, commit, tree)
                apply_overrides(partial / "params.yaml", overrides)
        yield Experiment(name or f"run-{digest}", folder, load_params(folder / "params.yaml"))


def remove_old_clones(checkout: Path) -> None:
    """Delete clones that no run has begun in, or gone on with, for KEPT_DAYS; but for those in use, and those whose
    record waits for MLflow.
    """
    limit, runs = time.time() - KEPT_DAYS * 86_400, checkout / RUNS
    for clone in {entry.with_suffix("") for entry in runs.iterdir()}:
        lock = clone.with_suffix(".lock")
        # Another run may be about to remove the same one, or to begin in it.
        with suppress(Timeout, FileNotFoundError):
            if (clone if clone.exists() else lock).stat().st_mtime < limit:
                with FileLock(lock, blocking=False):
                    used_since = clone.exists() and clone.stat().st_mtime >= limit
                    if not used_since and discard(clone):
                        lock.unlink()


@contextmanager
def _held(checkout: Path, clone: Path, place: Path) -> Iterator[None]:
    (checkout / RUNS).mkdir(exist_ok=True)
    lock = FileLock(clone.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        get_run_logger().info("another run works in %s; this one waits for its end", place)
        lock.acquire()
    try:
        _touch(clone)
        yield
    finally:
        _touch(clone)
        lock.release()


def _touch(clone: Path) -> None:
    """Its time of change tells `remove_old_clones` when a run was last at work in it."""
    with suppress(FileNotFoundError):
        os.utime(clone)


def apply_overrides(path: Path, overrides: Sequence[str]) -> None:
    """Change `path` as `dvc exp run -S` would; refuses what would change nothing that the chosen profile reads.

    Raises:
        PipelineError: see `prepared_experiment`.
    """
    before = read_document(path)
    _apply(path, overrides)
    _check(path, before, read_document(path))


def check_overrides(document: Document, overrides: Sequence[str], folder: Path) -> None:
    """`apply_overrides` to params.yaml that is read already, its result thrown away: in a tenth of the time.

    Args:
        folder: for files that the next call overwrites.

    Raises:
        PipelineError: see `prepared_experiment`.
    """
    path, small = folder / "params.yaml", folder / "touched.json"
    if (touched := _touched(document, overrides)) is None:  # the slow way
        path.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
        apply_overrides(path, overrides)
        return
    small.write_text(json.dumps(touched), encoding="utf-8")
    _apply(small, overrides)
    after = {**document, **json.loads(small.read_text(encoding="utf-8"))}
    if "profiles" in touched:
        after["profiles"] = {**document["profiles"], **after["profiles"]}
    path.write_text(json.dumps(after), encoding="utf-8")
    _check(path, document, after)


def _touched(document: Document, overrides: Sequence[str]) -> dict[str, Any] | None:
    """The part of params.yaml in which the overrides lie; None if they are not all of the form NAME.NAME=VALUE."""
    part: dict[str, Any] = {}
    for override in overrides:
        if (simple := SIMPLE.match(override)) is None or simple[1] == "profiles":
            return None
        section, *rest = simple[1].split(".")
        if section == "profiles":
            of_profiles = part.setdefault("profiles", {})
            if rest[0] in document["profiles"]:
                of_profiles[rest[0]] = document["profiles"][rest[0]]
        elif section in document:
            part[section] = document[section]
    return part


def _apply(path: Path, overrides: Sequence[str]) -> None:
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides as apply

    try:
        apply(str(path), list(overrides))
    except (DvcException, ValueError, TypeError, KeyError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        reason = "params.yaml has no such key" if reason.startswith("Could not override") else reason
        raise PipelineError(f"overrides: {', '.join(overrides)}: {reason}; write KEY=VALUE as in -S") from error


def _check(path: Path, before: Document, after: Document) -> None:
    """Whether `path`, which holds `after`, can be used, and whether all that differs from `before` is."""
    if "profiles" not in after:
        raise PipelineError("overrides: profiles: cannot be taken away; the chosen profile is one of them")
    try:
        load_params(path)
    except PipelineError as error:
        raise PipelineError(f"overrides: {str(error).removeprefix(f'{path}: ')}") from error
    if unused := unused_changes(before, after):
        raise PipelineError(f"overrides: {unused[0]} changes nothing: {explained(unused[0], after)}")


def save_experiment(experiment: Experiment, stages: Sequence[str]) -> None:
    """Record what `stages` made as a DVC experiment of the checkout, replacing one of the same name."""
    _dvc(experiment.folder, "exp", "save", "--force", "--name", experiment.name, *stages)
    _dvc(experiment.folder, "exp", "push", "--force", "--no-cache", "origin", experiment.name)


def push_experiment(checkout: Path, name: str) -> None:
    """Hand an experiment of `checkout` on to the Git remote that the checkout came from."""
    _dvc(checkout, "exp", "push", "--force", "--no-cache", "origin", name)


def discard(folder: Path) -> bool:
    """Delete a clone, unless a record in it still waits for MLflow; whether it is gone."""
    if any((folder / SPOOLS).glob("*/events.jsonl")):
        return False
    if folder.exists():
        shutil.rmtree(folder)
    return True


def git(folder: Path, *arguments: str, hint: str = "") -> str:
    """Standard output of a Git command in `folder`.

    Raises:
        PipelineError: Git is missing or refuses.
    """
    try:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise PipelineError("git is not installed; install it") from None
    if result.returncode != 0:
        reason = hint or " ".join(result.stderr.split())
        raise PipelineError(f"{folder}: git {arguments[0]}: {reason}")
    return result.stdout.strip()


def _clone(checkout: Path, folder: Path, commit: str, tree: str) -> None:
    git(checkout, "clone", "--quiet", "--no-checkout", str(checkout), str(folder))
    git(folder, "checkout", "--quiet", "--detach", commit)
    git(folder, "read-tree", "--reset", "-u", tree)
    git(folder, "reset", "--quiet")
    for name, value in IDENTITY.items():
        git(folder, "config", name, value)
    local = checkout / ".dvc" / "config.local"
    if local.exists():
        shutil.copy(local, folder / ".dvc" / "config.local")
    dag.share_cache(checkout, folder)


def _dvc(folder: Path, *arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env={**os.environ, "DVC_NO_ANALYTICS": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        lines = [line for line in (result.stderr or result.stdout).splitlines() if line.startswith("ERROR")]
        raise PipelineError(f"{folder}: dvc {' '.join(arguments[:2])}: {(lines or [result.stderr])[-1].strip()}")
