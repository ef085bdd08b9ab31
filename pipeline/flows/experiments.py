"""Runs with other parameters, each in its own clone: the checkout stays as it is, and several can run at once.

A clone lies in .runs/DIGEST, named by a digest of what goes into it, so that the same run, started again, continues
where it was stopped. It shares the checkout's DVC cache, run-cache included: stages that the parameters do not affect
are restored, not run. Its result is saved as a DVC experiment and pushed to the checkout, where `dvc exp show`, `diff`
and `apply` find it. `dvc exp run --temp` would start again from the first epoch.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import PipelineError
from pipeline.base.files import atomic_folder
from pipeline.base.overrides import explained, unused_changes
from pipeline.base.params import load_params, read_document
from pipeline.base.profile import Params
from pipeline.flows import dag
from pipeline.tracking.tracker import SPOOLS

RUNS = Path(".runs")
IDENTITY = {"user.name": "gain", "user.email": "gain@localhost"}  # of commits that no branch contains


@dataclass(frozen=True)
class Experiment:
    """Where a run with other parameters takes place, and what its result will be called."""

    name: str
    folder: Path
    params: Params


def prepare_experiment(checkout: Path, overrides: Sequence[str], name: str = "") -> Experiment:
    """A clone of `checkout` at its commit, with what is changed there in tracked files and with `overrides` on top.

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
    if not folder.exists():
        with atomic_folder(folder) as partial:
            _clone(checkout, partial, commit, tree)
            apply_overrides(partial / "params.yaml", overrides)
    return Experiment(name or f"run-{digest}", folder, load_params(folder / "params.yaml"))


def apply_overrides(path: Path, overrides: Sequence[str]) -> None:
    """Change `path` as `dvc exp run -S` would; refuses what would change nothing that the chosen profile reads.

    Raises:
        PipelineError: see `prepare_experiment`.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides as apply

    before = read_document(path)
    try:
        apply(str(path), list(overrides))
        load_params(path)
    except PipelineError as error:
        raise PipelineError(f"overrides: {str(error).removeprefix(f'{path}: ')}") from error
    except (DvcException, ValueError, TypeError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        reason = "params.yaml has no such key" if reason.startswith("Could not override") else reason
        raise PipelineError(f"overrides: {', '.join(overrides)}: {reason}; write KEY=VALUE as in -S") from error
    after = read_document(path)
    if unused := unused_changes(before, after):
        raise PipelineError(f"overrides: {unused[0]} changes nothing: {explained(unused[0], after)}")


def save_experiment(experiment: Experiment, stages: Sequence[str]) -> None:
    """Record what `stages` made as a DVC experiment of the checkout, replacing one of the same name."""
    _dvc(experiment.folder, "exp", "save", "--force", "--name", experiment.name, *stages)
    _dvc(experiment.folder, "exp", "push", "--force", "--no-cache", "origin", experiment.name)


def push_experiment(checkout: Path, name: str) -> None:
    """Hand an experiment of `checkout` on to the Git remote that the checkout came from."""
    _dvc(checkout, "exp", "push", "--force", "--no-cache", "origin", name)


def discard(experiment: Experiment) -> bool:
    """Delete the clone, unless a record in it still waits for MLflow; whether it is gone."""
    if any((experiment.folder / SPOOLS).glob("*/events.jsonl")):
        return False
    shutil.rmtree(experiment.folder)
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
    _dvc(folder, "config", "--local", "cache.dir", str(dag.cache_folder(checkout)))


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
