"""Checkouts without history, and the commands that a user runs in them."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import yaml
from calls import called

PATIENCE = 300.0  # seconds; ten times what two busy cores need
ENDLESS = 90_000  # epochs; an hour and more even of the smallest training, which a test ends long before
REPOSITORY = Path(__file__).parents[1]
COPIED = ("pipeline", "stages", "deploy", "params.yaml", "dvc.yaml", "prefect.yaml", ".dvcignore", ".gitignore")


def checkout(folder: Path, profile: str = "smoke", **changes: object) -> Path:
    """A checkout without history whose params.yaml chooses `profile`, with changes as `set_params` takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    set_params(folder, {"profile": profile, **changes})
    return folder


def dvc_checkout(folder: Path, profile: str = "smoke", **changes: object) -> Path:
    """The same for DVC without Git; what `dvc init --no-scm` writes, without the seconds that the command takes."""
    checkout(folder, profile, **changes)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")
    return folder


def git_checkout(folder: Path, profile: str = "smoke", **changes: object) -> Path:
    """The same with a history of one commit, as runs with other parameters need it, and as a clone has it."""
    checkout(folder, profile, **changes)
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(REPOSITORY / ".dvc" / name, folder / ".dvc" / name)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "Begin")
    return folder


def git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def tracking_database(path: Path) -> Path:
    """An MLflow database without records, copied: MLflow takes seconds to make one, so a machine makes it once."""
    name = f"guided-attention-tests-{os.getuid()}-mlflow-{version('mlflow')}.db"
    template = Path(tempfile.gettempdir()) / name
    if not template.exists():
        from mlflow import MlflowClient

        with tempfile.TemporaryDirectory(dir=template.parent) as folder:
            MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
            Path(folder, "mlflow.db").replace(template)
    shutil.copy(template, path)
    return path


def set_params(folder: Path, changes: dict[str, object]) -> None:
    """Set dotted keys of params.yaml; a key that starts with a dot is one of the chosen profile."""
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        section = params["profiles"][params["profile"]] if key.startswith(".") else params
        *parents, last = key.lstrip(".").split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_", "PREFECT"))}
    return {**clean, "PATH": path, "PWD": str(folder), "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "true"}


def _own_store(folder: Path) -> dict[str, str]:
    """The same, and the database by its whole path: within one process MLflow takes equal addresses for one store."""
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", **environment(folder)}


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)


def stage(folder: Path, name: str, *arguments: str, tracked: bool = False) -> subprocess.CompletedProcess[str]:
    """A stage as its user calls it, after the stage configure, but in this process (calls.py).

    What configure refuses is the result. Only where it is `tracked` does the stage start its sender.
    """
    if name != "configure":
        configured = stage(folder, "configure", *arguments_of_configure(arguments))
        if configured.returncode:
            return configured
    return called(REPOSITORY / "stages" / f"{name}.py", arguments, folder, _own_store(folder), tracked=tracked)


def arguments_of_configure(arguments: Sequence[str]) -> list[str]:
    """The folder, where a stage is given one."""
    index = arguments.index("--folder") if "--folder" in arguments else len(arguments)
    return list(arguments[index : index + 2])


def gain(folder: Path, *arguments: str, tracked: bool = False) -> subprocess.CompletedProcess[str]:
    """`gain ARGUMENTS` in a checkout, in this process."""
    script = REPOSITORY / "pipeline" / "cli" / "main.py"
    return called(script, arguments, folder, _own_store(folder), tracked=tracked)


def python(folder: Path, *arguments: str, **added: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in a checkout, with more environment variables."""
    command = [sys.executable, *arguments]
    env = {**environment(folder), **added}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def becomes(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Whether the condition holds within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The stage failed with exactly one line on standard error, holding every part."""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == 1, result.stdout + result.stderr
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0]
