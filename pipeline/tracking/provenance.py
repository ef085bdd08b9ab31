"""Where a run comes from: its commit, its DVC experiment and its Prefect flow run, and the commands that repeat it."""

import os
import subprocess
from pathlib import Path


def source_tags() -> dict[str, str]:
    """MLflow tags that name the commit, the DVC experiment and the Prefect flow run of this process; those it has."""
    tags = {
        "mlflow.source.git.commit": commit(),
        "mlflow.source.type": "PROJECT",
        "mlflow.source.name": Path.cwd().name,
        "dvc_experiment": experiment(),
        "prefect_flow_run": os.environ.get("PREFECT__FLOW_RUN_ID", ""),
    }
    return {name: value for name, value in tags.items() if value}


def reproduction() -> str:
    """Markdown: the commands that repeat this run, as exactly as a commit or a DVC experiment records it."""
    if not (revision := commit()):
        return "Made outside Git: `dvc repro` in the folder that it was made in reproduces it."
    if name := experiment():
        return f"Reproduce: `git checkout {revision[:12]} && dvc exp apply {name} && dvc repro`"
    text = f"Reproduce: `git checkout {revision[:12]} && dvc repro`"
    return f"{text}, with the changes that were not committed then" if _has_changes() else text


def commit() -> str:
    """SHA-1 of the commit that is checked out; "" outside Git, before the first commit, and where git is missing."""
    return _git("rev-parse", "--verify", "--quiet", "HEAD") or ""


def experiment() -> str:
    """Name of the DVC experiment that this process is part of; "" outside one."""
    return os.environ.get("DVC_EXP_NAME", "")


def _has_changes() -> bool:
    return _git("diff", "--quiet", "HEAD") is None


def _git(*arguments: str) -> str | None:
    """What git prints; None if it fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None
    return done.stdout.strip()
