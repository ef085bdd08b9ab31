"""Faults of a working day around a training: DVC that cannot commit, DVC that is killed, a second trainer."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from checkouts import ENDLESS, becomes, dvc, dvc_checkout, environment, python, set_params, tracking_database
from mlflow import MlflowClient
from processes import without_forks

pytestmark = pytest.mark.system

WEIGHTS = "models/pretrain.safetensors"


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A checkout with data, whose next stage is pretrain."""
    folder = dvc_checkout(tmp_path / "repo")
    for name in ("data", "reports/configure"):
        shutil.copytree(finished / name, folder / name)
    tracking_database(folder / "mlflow.db")
    return folder


def runs_of(folder: Path) -> list[tuple[str, str]]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("gain")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return [(run.info.run_name, run.info.status) for run in runs]


def trainers(folder: Path) -> list[psutil.Process]:
    """Living processes that train in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        at_work = "stages.pretrain" in (process.info["cmdline"] or []) and process.info["cwd"] == str(folder)
        if at_work and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return without_forks(found)


def begun(folder: Path) -> "subprocess.Popen[bytes]":
    """`dvc repro pretrain` of a training that does not end by itself, after its first epoch."""
    set_params(folder, {".pretrain.num_epochs": ENDLESS})
    command = [sys.executable, "-m", "dvc", "repro", "pretrain"]
    running = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL)
    assert becomes(lambda: list((folder / "checkpoints").rglob("*.pt")))
    return running


def test_what_dvc_could_not_commit_is_written_again_and_not_trained(finished, folder):
    """The stage has run, but dvc.lock does not have its outputs: DVC was killed, or its cache had no room."""
    assert dvc(folder, "repro", "prepare").returncode == 0
    done = python(folder, "-m", "stages.pretrain")
    assert "pretrain: epoch 2/2" in done.stdout
    result = dvc(folder, "repro", "pretrain")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "pretrain: resuming after epoch 2 from" in result.stdout
    assert "pretrain: epoch" not in result.stdout
    for output in (WEIGHTS, "reports/pretrain/curves.csv", "reports/pretrain/summary.json"):
        assert (folder / output).read_bytes() == (finished / output).read_bytes(), output
    assert runs_of(folder) == [("pretrain-seed0", "FINISHED")]
    assert list((folder / "checkpoints").rglob("*.finished.pt"))
    assert dvc(folder, "repro", "classify").returncode == 0
    assert not list((folder / "checkpoints/pretrain").rglob("*.pt"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/dash"])
def test_a_trainer_ends_with_the_dvc_that_started_it(folder, monkeypatch, number, shell):
    monkeypatch.setenv("SHELL", shell)
    path = folder / "dvc.yaml"
    if shell == "/bin/bash":  # as in the study: the shell stays between DVC and the trainer
        through = path.read_text().replace("cmd: python -m stages.pretrain", "cmd: cd . && python -m stages.pretrain")
        path.write_text(through)
    running = begun(folder)
    assert len(trainers(folder)) >= 1
    running.send_signal(number)
    running.wait()
    assert becomes(lambda: not trainers(folder), seconds=20)
    assert list((folder / "checkpoints").rglob("*.pt"))
    assert not list((folder / "models").rglob("*"))


def test_a_second_trainer_is_refused_while_the_first_goes_on(folder):
    running = begun(folder)
    try:
        second = python(folder, "-m", "stages.pretrain")
        (first,) = (process for process in trainers(folder) if "dvc" not in process.name())
        assert second.returncode == 1
        assert f"pretrain: error: process {first.pid} on " in second.stderr
        assert first.is_running()
    finally:
        os.kill(running.pid, signal.SIGTERM)
        running.wait()
        assert becomes(lambda: not trainers(folder), seconds=20)
