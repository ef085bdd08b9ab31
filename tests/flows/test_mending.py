"""What a registry holds that was lost, and DVC's caches of every kind: the registry says what reports/register says."""

import json
import shutil
import stat
from pathlib import Path

import pytest
from checkouts import dvc, gain, tracking_database
from mlflow import MlflowClient

from pipeline.base.files import digest_file, read_numbers

pytestmark = pytest.mark.system

NAME = "fcn8s-gain-smoke"
TRAININGS = {"pretrain-seed0", "classify-seed0", "control-seed0", "gain-seed0", "gain_ext-seed0"}


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """The finished checkout, whose MLflow has lost everything."""
    copy = tmp_path / "repo"
    lost = shutil.ignore_patterns("mlflow.db*", "mlruns", ".tracking")
    shutil.copytree(finished, copy, symlinks=True, ignore=lost)
    tracking_database(copy / "mlflow.db")
    return copy


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def check_registry(folder: Path) -> None:
    """The challenger is that of reports/register, and belongs to a run with curves and scores of its training."""
    client = client_of(folder)
    said = json.loads((folder / "reports/register/challenger.json").read_text())
    version = client.get_model_version_by_alias(NAME, "challenger")
    assert version.tags["weights_sha256"] == said["weights_sha256"]
    runs = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("gain").experiment_id])}
    assert set(runs) == TRAININGS
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    run = client.get_run(version.run_id)
    assert run.info.run_name == f"{said['variant']}-seed0"
    assert run.data.tags["rebuilt_from"] == "reports"
    assert run.data.metrics["test/mean_iou"] == said["metrics"]["segmentation"]["mean_iou"]
    curve = read_numbers(folder / f"reports/finetune/{said['variant']}/curves.csv")
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [(metric.step, metric.value) for metric in history] == [(int(r["epoch"]), r["loss/total"]) for r in curve]
    assert run.data.params["finetune.learning_rate"] == "0.001"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"curves.csv", "summary.json", "images"}


def test_a_repro_that_restores_the_trainings_registers_again(folder):
    """`evaluate` runs, since its scores are in Git and not in DVC's cache, and makes runs with test scores alone."""
    for name in ("data", "models", "reports/finetune", "reports/evaluate", "reports/register"):
        shutil.rmtree(folder / name)
    result = dvc(folder, "repro")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "> python -m stages.finetune" not in result.stdout
    assert "> python -m stages.register" in result.stdout
    check_registry(folder)
    assert "up to date" in dvc(folder, "status").stdout


def test_verify_mends_and_then_finds_nothing_to_mend(folder):
    result = gain(folder, "register", "--verify")
    assert result.returncode == 0, result.stderr
    assert f"the registry lacks the challenger of {NAME}; it is registered again" in result.stdout
    check_registry(folder)
    client = client_of(folder)
    client.set_registered_model_alias(NAME, "champion", "1")
    client.delete_registered_model_alias(NAME, "challenger")
    again = gain(folder, "register", "--verify")
    assert again.stdout.splitlines() == [f"register: version 1 of {NAME} is there; runs: none is missing"]
    assert client.get_registered_model(NAME).aliases == {"champion": 1}


def test_a_single_lost_run_is_made_again(folder):
    assert gain(folder, "register").returncode == 0
    client = client_of(folder)
    experiment = client.get_experiment_by_name("gain").experiment_id
    lost = client.search_runs([experiment], "attributes.run_name = 'pretrain-seed0'")[0]
    client.delete_run(lost.info.run_id)
    result = gain(folder, "register", "--verify")
    assert "runs: made again from models/ and reports/: pretrain" in result.stdout
    check_registry(folder)


@pytest.mark.parametrize("links", ["symlink", "hardlink", "reflink,copy", "copy"])
def test_register_with_every_kind_of_dvc_cache(folder, links):
    assert dvc(folder, "config", "--local", "cache.type", links).returncode == 0
    relinked = dvc(folder, "checkout", "--relink", "--force")
    assert relinked.returncode == 0, relinked.stderr
    weights = folder / "models/finetune/gain.safetensors"
    assert weights.is_symlink() == (links == "symlink")
    assert bool(weights.stat().st_mode & stat.S_IWUSR) == (links not in ("symlink", "hardlink"))
    result = dvc(folder, "repro", "--force", "--single-item", "register")
    assert result.returncode == 0, result.stdout + result.stderr
    check_registry(folder)
    stored = list(folder.glob("mlruns/**/artifacts/*.safetensors"))
    said = json.loads((folder / "reports/register/challenger.json").read_text())
    assert [digest_file(path) for path in stored] == [said["weights_sha256"]]
    assert not stored[0].is_symlink()
