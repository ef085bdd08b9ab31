"""What the whole pipeline leaves on a handful of images; stages that are killed or given bad input."""

import json
import shutil
import signal
from pathlib import Path

import mlflow
import pytest
from checkouts import (
    checkout,
    dvc,
    gain,
    one_line,
    python,
    set_params,
    stage,
    tracking_database,
)

from pipeline.base.files import digest_file
from pipeline.data.images import decode_mask
from pipeline.data.voc import mask_path, read_split
from pipeline.datasets.counterfactual.table import OBJECT_SETS, SETS, read_table
from pipeline.datasets.embedded import CLASS_NAMES

pytestmark = pytest.mark.system

KILLED_AFTER_AN_EPOCH = """
import os, runpy, signal, sys
from pipeline.training.checkpoints import CheckpointFile

def save_and_die(self, state, save=CheckpointFile.save):
    save(self, state)
    os.kill(os.getpid(), signal.SIGKILL)

CheckpointFile.save = save_and_die
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def repro(finished) -> Path:
    """A checkout in which the whole pipeline has run."""
    return finished


@pytest.fixture
def copy(repro, tmp_path) -> Path:
    """Data, weights and parameters of the finished checkout, to break."""
    folder = checkout(tmp_path / "repo")
    for name in ("data", "models", "reports/configure"):
        shutil.copytree(repro / name, folder / name)
    tracking_database(folder / "mlflow.db")
    return folder


def test_every_model_is_scored(repro):
    metrics = json.loads((repro / "reports" / "evaluate" / "metrics.json").read_text())
    assert list(metrics) == ["pretrained", "control", "gain", "gain_ext"]
    groups = {name: set(values) for name, values in metrics["gain"].items()}
    assert {"pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou"} == groups["segmentation"]
    assert {"attention_iou", "energy_pointing_game", "pointing_game", "dead_map_rate"} <= groups["attention"]
    assert {"object_without_context", "context_without_object", "overall", "worst_group"} == groups["context_bias"]
    assert {"only_object", "no_object_filled", "no_object_mean"} <= groups["counterfactual"]
    assert "macro_f1" in groups["classification"]
    validation = json.loads((repro / "reports/evaluate/validation.json").read_text())
    assert list(validation) == list(metrics)
    for name, scores in validation.items():
        last = json.loads((repro / f"reports/finetune/{name}/summary.json").read_text()) if name != "pretrained" else {}
        assert {score: last.get(f"val/{score}", value) for score, value in scores.items()} == pytest.approx(scores)


def test_objects_and_grounds_of_the_test_images_are_separated(repro):
    """The scores are of the sets that could be made, and of all of the test images' own pixels."""
    folder = repro / "data/counterfactual"
    rows = read_table(folder)
    metrics = json.loads((repro / "reports/evaluate/metrics.json").read_text())
    assert {row.split for row in rows} == set(metrics["control"]["counterfactual"]) & set(SETS)
    assert {row.source for row in rows} <= set(read_split(repro / "data/voc", "test"))
    for row in rows:
        mask = decode_mask(mask_path(folder, row.image_id))
        own = decode_mask(mask_path(repro / "data/voc", row.source)) == CLASS_NAMES.index(row.object) + 1
        assert (row.object in row.classes) == (row.split in OBJECT_SETS)
        assert (mask[own] == (CLASS_NAMES.index(row.object) + 1 if row.split in OBJECT_SETS else 255)).all()
    assert (folder / "not_made.csv").exists()
    assert "only_object" in (repro / "reports/evaluate/tables/per_class.csv").read_text().splitlines()[0]


def test_challenger_is_chosen_on_validation_images(repro):
    validation = json.loads((repro / "reports/evaluate/validation.json").read_text())
    best = max(("gain", "gain_ext"), key=lambda name: validation[name]["attention_iou"])
    challenger = json.loads((repro / "reports/register/challenger.json").read_text())
    assert challenger["variant"] == best
    assert challenger["chosen_by"].startswith("attention_iou on validation images: gain ")
    assert challenger["chosen_by"] in (repro / "reports/register/model_card.md").read_text()


def test_reports_hold_curves_tables_and_panels(repro):
    curves = (repro / "reports/finetune/gain_ext/curves.csv").read_text().splitlines()
    for name in ("segmentation", "classification", "attention_mining", "external_supervision", "total"):
        assert f"loss/{name}" in curves[0]
    assert {"train/learning_rate", "train/dead_map_rate"} <= set(curves[0].split(","))
    assert len(curves) == 3
    pictures = {str(p.relative_to(repro / "reports/evaluate/pictures")) for p in repro.glob("reports/**/*.png")}
    models = ("pretrained", "control", "gain", "gain_ext")
    of_model = ("panels", "loss_curves", "confusion", "attention_evolution")
    assert pictures == {"comparison.png", "class_iou.png", "compared_curves.png"} | {
        f"{model}/{name}.png" for model in models for name in of_model
    }
    intervals = (repro / "reports/evaluate/tables/intervals.csv").read_text()
    assert "gain_ext,attention_iou_small," in intervals
    assert "gain_ext,deletion_auc," in intervals
    summary = json.loads((repro / "reports/classify/summary.json").read_text())
    trunk = summary["frozen"]["trunk"]
    assert trunk["sha256_before"] == trunk["sha256_after"]


def test_runs_are_in_mlflow_with_training_and_test_scores(repro, monkeypatch):
    client = mlflow.MlflowClient(f"sqlite:///{repro / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("gain").experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    names = {"pretrain-seed0", "classify-seed0", "control-seed0", "gain-seed0", "gain_ext-seed0"}
    assert set(by_name) == names
    assert {run.info.status for run in runs} == {"FINISHED"}
    run = by_name["gain_ext-seed0"]
    assert {"loss/external_supervision", "val/mean_iou", "test/attention_iou"} <= set(run.data.metrics)
    assert run.data.params["finetune.loss_weights.external_supervision"] == "10.0"
    # What the scores were made on is what promotion compares.
    challenger = json.loads((repro / "reports/register/challenger.json").read_text())
    assert run.data.tags["test_data_digest"] == challenger["test_data_digest"]
    images = [f.path for f in client.list_artifacts(run.info.run_id, "images")]
    assert any("attention+step+2" in path for path in images)
    for name in ("panels", "confusion", "class_iou", "loss_curves", "attention_evolution"):
        assert any(f"{name}+step+0" in path for path in images), name
    assert {"train/gradient_norm/trunk", "train/gradient_norm/classifier"} <= set(run.data.metrics)
    tags = by_name["classify-seed0"].data.tags
    assert not [name for name in tags if name.startswith("frozen.")]  # summary.json has the proof


def test_challenger_answers(repro, monkeypatch):
    """The registered version loads from the registry and predicts on the bytes of an image of any size."""
    import base64

    import pandas as pd
    from mlflow.pyfunc import load_model

    uri = f"sqlite:///{repro / 'mlflow.db'}"
    monkeypatch.chdir(repro)
    mlflow.set_tracking_uri(uri)
    version = mlflow.MlflowClient(uri).get_model_version_by_alias("fcn8s-gain-smoke", "challenger")
    chosen = json.loads((repro / "reports/register/challenger.json").read_text())
    assert version.tags["weights_sha256"] == chosen["weights_sha256"]
    assert version.tags["variant"] in ("gain", "gain_ext")
    assert digest_file(repro / f"models/finetune/{chosen['variant']}.safetensors") == chosen["weights_sha256"]
    model = load_model("models:/fcn8s-gain-smoke@challenger")
    image = next((repro / "data/voc/JPEGImages").iterdir()).read_bytes()
    answer = model.predict(pd.DataFrame({"image": [base64.b64encode(image).decode()]}))
    assert set(answer["class_probs"][0]) == {"aeroplane", "boat", "car", "tree", "cactus", "snowman"}
    assert base64.b64decode(answer["segmentation"][0])[:4] == b"\x89PNG"


def test_second_repro_is_a_no_op(repro):
    before = (repro / "dvc.lock").read_bytes()
    result = dvc(repro, "repro")
    assert "Running stage" not in result.stdout + result.stderr
    assert (repro / "dvc.lock").read_bytes() == before
    assert "up to date" in dvc(repro, "status").stdout


def test_one_loss_weight_retrains_one_variant(repro, tmp_path):
    """Parameters are tracked per variant; nothing else is invalidated."""
    folder = tmp_path / "repo"
    shutil.copytree(repro, folder)
    set_params(folder, {".variants.gain.loss_weights.attention_mining": 0.5})
    assert dvc(folder, "repro", "configure").returncode == 0
    changed = {
        name.split(":")[0] for name in dvc(folder, "status").stdout.splitlines() if name and not name.startswith("\t")
    }
    assert changed == {"finetune@gain", "evaluate"}


@pytest.mark.parametrize("killed", ["pretrain", "finetune"])
def test_killed_training_resumes_to_the_same_bytes(repro, copy, killed):
    arguments = ("gain_ext",) if killed == "finetune" else ()
    name = "/".join((killed, *arguments))
    outputs = [f"models/{name}.safetensors", f"reports/{name}/curves.csv", f"reports/{name}/summary.json"]
    outputs += [f"reports/{name}/attention.safetensors"] if killed == "finetune" else []
    (copy / outputs[0]).unlink()
    interrupted = python(copy, "-c", KILLED_AFTER_AN_EPOCH, f"stages.{killed}", *arguments)
    assert interrupted.returncode == -signal.SIGKILL, interrupted.stderr
    assert not (copy / outputs[0]).exists()
    result = stage(copy, killed, *arguments)
    assert result.returncode == 0, result.stderr
    assert "resuming after epoch 1" in result.stdout
    for output in outputs:
        assert (copy / output).read_bytes() == (repro / output).read_bytes(), output
    (kept,) = (copy / "checkpoints").rglob("*.pt")  # until DVC has committed the weights
    assert kept.name.endswith(".finished.pt")


def test_changed_parameter_ignores_a_stale_checkpoint(copy):
    interrupted = python(copy, "-c", KILLED_AFTER_AN_EPOCH, "stages.pretrain")
    assert interrupted.returncode == -signal.SIGKILL, interrupted.stderr
    assert list((copy / "checkpoints").rglob("*.pt"))
    set_params(copy, {".pretrain.learning_rate": 1.0e-4})
    result = stage(copy, "pretrain")
    assert result.returncode == 0, result.stderr
    assert "resuming" not in result.stdout


def test_misspelt_key_is_one_line(copy):
    set_params(copy, {".pretrain.learnin_rate": 0.1})
    one_line(
        stage(copy, "pretrain"), "params.yaml: profiles.smoke.pretrain: unknown key 'learnin_rate'", "'learning_rate'"
    )


def test_cuda_without_a_gpu_is_one_line(copy, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    set_params(copy, {".runtime.device": "cuda"})
    one_line(stage(copy, "pretrain"), "runtime.device: cuda is not available", "sees 0 CUDA devices", "device: cpu")


def test_unknown_variant_is_one_line(copy):
    one_line(stage(copy, "finetune", "gian"), "variants has no 'gian'; did you mean 'gain'?")


def test_damaged_image_is_one_line_and_leaves_no_manifest(copy):
    image = sorted((copy / "data/voc/JPEGImages").iterdir())[0]
    image.write_bytes(image.read_bytes()[:300])
    (copy / "data/manifest.csv").unlink()
    one_line(stage(copy, "prepare"), image.name, "cannot be decoded")
    assert not list((copy / "data").glob("manifest.csv*"))


def test_missing_split_is_one_line(copy):
    (copy / "data/voc/ImageSets/Segmentation/val.txt").unlink()
    one_line(stage(copy, "prepare"), "val.txt: missing", "dvc repro --force download")


def test_diverging_training_is_one_line_and_writes_no_weights(copy):
    changes = {".pretrain.optimizer": "sgd", ".pretrain.learning_rate": 1.0e3, ".pretrain.max_gradient_norm": 1.0e12}
    set_params(copy, {**changes, ".model.batch_norm": False})
    (copy / "models/pretrain.safetensors").unlink()
    result = stage(copy, "pretrain")
    one_line(result, "loss is not finite at epoch", "step", "segmentation = ", "learning_rate")
    assert not (copy / "models/pretrain.safetensors").exists()


def test_unreachable_tracking_server_does_not_stop_a_training(copy):
    result = python(copy, "-m", "stages.pretrain", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    assert "warning: MLflow at http://127.0.0.1:9" in result.stderr
    assert (copy / "reports/pretrain/curves.csv").exists()


def test_learning_rate_range_test_plots_suggests_and_tracks(copy):
    result = gain(
        copy, "lr-find", "finetune", "gain_ext", "--steps", "12", "--lowest", "1e-5", "--highest", "0.1", tracked=True
    )
    assert result.returncode == 0, result.stderr
    assert "lr-find: finetune/gain_ext:" in result.stdout
    curve = (copy / "reports/lr_find/finetune_gain_ext.csv").read_text().splitlines()
    assert curve[0] == "rate,loss,smoothed"
    assert 3 < len(curve) <= 13
    assert (copy / "reports/lr_find/finetune_gain_ext.png").stat().st_size > 5000
    client = mlflow.MlflowClient(f"sqlite:///{copy / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("gain").experiment_id])
    assert run.info.run_name == "lr-find-gain_ext-seed0"
    assert "lr_find/loss" in run.data.metrics


def test_learning_rate_range_test_refuses_in_one_line(copy):
    one_line(gain(copy, "lr-find", "finetune", "gian"), "finetune takes a variant, one of control, gain, gain_ext")
    one_line(gain(copy, "lr-find", "pretrain", "--lowest", "1", "--highest", "0.1"), "0 < lowest < highest")


def test_boxes_and_shuffled_masks_guide_a_training(copy):
    for guidance in ("boxes", "shuffled_masks"):
        set_params(copy, {".attention.guidance": guidance})
        result = stage(copy, "finetune", "gain_ext")
        assert result.returncode == 0, result.stderr
        assert "8 of 16 images guide attention" in result.stdout


def test_weights_are_scored_at_the_scale_that_they_were_trained_for(copy):
    set_params(copy, {".evaluate.scale": 0.5})
    assert stage(copy, "configure").returncode == 0
    result = stage(copy, "evaluate")
    *doubts, error = result.stderr.strip().splitlines()
    assert result.returncode == 1
    assert all(doubt.startswith("warning: evaluate.scale: 0.5 lies outside") for doubt in doubts)
    refused = "models/classify.safetensors: sees images at scale 1, and params.yaml says evaluate.scale: 0.5; train it"
    assert error.startswith(f"evaluate: error: {refused}")


def test_a_stage_runs_in_a_folder_with_a_seed_of_its_own(copy):
    place = ("--folder", "study/seed7")
    for arguments in (("configure", *place, "--seed", "7"), ("download", *place)):
        result = python(copy, "-m", f"stages.{arguments[0]}", *arguments[1:])
        assert result.returncode == 0, result.stderr
    image = "voc/JPEGImages/train_00000.jpg"
    assert (copy / "study/seed7/data" / image).read_bytes() != (copy / "data" / image).read_bytes()
    refused = stage(copy, "configure", "--seed", "many")
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
