"""What a run shows in Prefect, with the artifacts kept in a dictionary instead of on a server."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from prefect.states import Completed, Failed

from pipeline.flows import report
from pipeline.flows.dag import Meta, StagePlan
from pipeline.flows.outcome import RunFailedError
from pipeline.flows.report import Report

SCORES = {"pretrained": 0.1, "control": 0.2, "gain": 0.4, "gain_ext": 0.3}


class AtOnce:
    """A display that does not leave anything to a thread."""

    def running(self):
        return nullcontext()

    def show(self, _, send):
        send()


@pytest.fixture
def artifacts(monkeypatch) -> dict[str, object]:
    kept: dict[str, object] = {}

    def create_progress(progress: float, *, key: str, description: str) -> str:
        kept[key] = progress
        return key

    monkeypatch.setattr(report, "create_progress_artifact", create_progress)
    monkeypatch.setattr(report, "update_progress_artifact", lambda key, progress: kept.update({key: progress}))
    monkeypatch.setattr(report, "create_markdown_artifact", lambda text, key, **_: kept.update({key: text}))
    monkeypatch.setattr(report, "create_table_artifact", lambda rows, key, **_: kept.update({key: rows}))
    monkeypatch.setattr(report, "find_runs", lambda weights: ("1", {name: f"run-of-{name}" for name in weights}))
    monkeypatch.setattr(report, "record_device", lambda tag: kept.update(device=tag))
    monkeypatch.setattr(report, "UPDATE_SECONDS", 0.0)
    monkeypatch.setattr(report, "Display", AtOnce)
    return kept


def begin(folder, *stages: str, experiment: str = "") -> Report:
    register = SimpleNamespace(candidates=["gain", "gain_ext"], metric="mean_iou")
    params = SimpleNamespace(profile="smoke", seed=0, register_=register)
    plan = [StagePlan(name, "", Meta()) for name in stages]
    return Report(folder, params, plan, experiment=experiment)


def test_stages_and_epochs_are_progress_and_the_summary_names_them(tmp_path, artifacts):
    found = begin(tmp_path, "prepare", "pretrain", experiment="other-seed")
    with found.published():
        assert artifacts["progress"] == 0.0
        found.starts("prepare")
        found.finished("prepare", Completed(name="Unchanged"))
        assert artifacts["progress"] == 50.0
        found.starts("pretrain")
        found.running("pretrain").see_device("cpu, 1 threads, 32-true")
        found.running("pretrain").advance(0.5)
        assert artifacts["progress"] == 75.0
        found.finished("pretrain", Completed())
    assert artifacts["progress"] == 100.0
    assert artifacts["device"] == "cpu, 1 threads, 32-true"
    summary = artifacts["summary"].splitlines()
    assert summary[0] == "# smoke, seed 0"
    assert "| prepare | Unchanged | 0.0 |  |" in summary
    assert summary[5].startswith("| pretrain | Completed | ")
    assert summary[5].endswith(" | cpu, 1 threads, 32-true |")
    assert "`dvc exp apply other-seed`" in summary[-1]
    assert found.sentence() == "1 of 2 stages ran, 0 restored; experiment other-seed"
    assert "scores" not in artifacts


def test_stages_at_work_at_the_same_time_add_up(tmp_path, artifacts):
    found = begin(tmp_path, "finetune@control", "finetune@gain")
    with found.published():
        for stage, device in (("finetune@control", "cuda:0"), ("finetune@gain", "cuda:1")):
            found.starts(stage)
            found.running(stage).see_device(device)
        found.running("finetune@control").advance(0.5)
        found.running("finetune@gain").advance(0.25)
        assert artifacts["progress"] == 37.5
        found.finished("finetune@gain", Completed())
        assert artifacts["progress"] == 75.0
        found.finished("finetune@control", Completed())
    lines = artifacts["summary"].splitlines()
    assert [(line.split()[1], line.split()[-2]) for line in lines if line.startswith("| finetune")] == [
        ("finetune@gain", "cuda:1"),
        ("finetune@control", "cuda:0"),
    ]


def test_a_failed_run_is_published_and_not_done(tmp_path, artifacts):
    found = begin(tmp_path, "prepare", "pretrain")
    with pytest.raises(RunFailedError), found.published():
        found.starts("prepare")
        found.finished("prepare", Failed())
        raise RunFailedError("prepare: error: an image", "Failed")
    assert artifacts["progress"] == 50.0
    assert "| prepare | Failed | " in artifacts["summary"]


def test_an_evaluation_that_failed_leaves_no_scores_to_read(tmp_path, artifacts):
    found = begin(tmp_path, "evaluate")
    with pytest.raises(RunFailedError, match="out of memory"), found.published():
        found.starts("evaluate")
        found.finished("evaluate", Failed())
        raise RunFailedError("evaluate: error: out of memory", "Failed")
    assert "| evaluate | Failed | " in artifacts["summary"]
    assert "scores" not in artifacts


def test_scores_are_a_table_with_the_best_candidate_and_links_to_the_runs(tmp_path, artifacts, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hidden@mlflow.example.org/")
    folder = tmp_path / "reports" / "evaluate"
    folder.mkdir(parents=True)
    metrics = {
        name: {"segmentation": {"mean_iou": value}, "classification": {"class_accuracy": 0.5}}
        for name, value in SCORES.items()
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    # In another order than on the test images.
    on_validation = {"pretrained": 0.8, "control": 0.9, "gain": 0.2, "gain_ext": 0.3}
    validation = {name: {"mean_iou": value} for name, value in on_validation.items()}
    (folder / "validation.json").write_text(json.dumps(validation))
    found = begin(tmp_path, "evaluate")
    with found.published():
        found.starts("evaluate")
        found.finished("evaluate", Completed())
    assert [(row["model"], row["best"], row["val/mean_iou"], row["mean_iou"]) for row in artifacts["scores"]] == [
        (name, name == "gain_ext", on_validation[name], value) for name, value in SCORES.items()
    ]
    summary = artifacts["summary"]
    assert "\n| model | mean IoU | class acc. |\n" in summary
    assert "\n| gain | 40.0 | 50.0 |\n" in summary
    run = "http://mlflow.example.org/#/experiments/1/runs/run-of-gain"
    assert f"- [gain]({run}), [what it attends to]({run}/artifacts/evaluate/index.html)" in summary
    assert "hidden" not in summary
