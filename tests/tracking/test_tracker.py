"""Tracking against a real MLflow store: what is recorded arrives once, and a dead server hurts nothing."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from checkouts import PATIENCE, REPOSITORY, tracking_database
from forked_sender import sync
from mlflow import MlflowClient
from PIL import Image

from pipeline.tracking.server import connect, find_run
from pipeline.tracking.tracker import SPOOLS, WEIGHTS_TAG, Tracker, Tracking, flatten

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("forked_senders")]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """A database with the experiment, once for all tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    tracking_database(folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    MlflowClient(uri).create_experiment("gain", artifact_location=(folder / "artifacts").as_uri())
    return uri


@pytest.fixture
def workplace(tmp_path, monkeypatch, store) -> Path:
    """An empty working directory that tracks into the store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr("pipeline.tracking.tracker.FINISH_SECONDS", PATIENCE)
    return tmp_path


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def record(tracking: Tracking, name: str, *, epochs: range, fail: bool = False) -> None:
    tags = {"stage": "pretrain", WEIGHTS_TAG: f"weights of {name}"}
    dataset = {"name": "embedded", "digest": "0123456789" * 7, "context": "training"}
    with Tracker(tracking, name, run_name=name, params={"a": {"b": 1}}, tags=tags, dataset=dataset) as tracker:
        for epoch in epochs:
            tracker.log_metrics({"loss/total": 1.0 / epoch}, step=epoch)
            tracker.log_image("attention", Image.new("RGB", (8, 8), "red"), step=epoch)
        if fail:
            raise InterruptedError
        Path("curves.csv").write_text("epoch\n")
        tracker.log_artifact(Path("curves.csv"), "tables")


def run_of(name: str):
    client, experiment_id = connect()
    runs = client.search_runs([experiment_id], f"tags.mlflow.runName = '{name}'")
    assert len(runs) == 1
    return client, runs[0]


def test_everything_recorded_arrives(workplace):
    with Tracking() as tracking:
        record(tracking, "complete", epochs=range(1, 4))
    client, run = run_of("complete")
    history = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss/total")]
    assert history == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a.b": "1"}
    assert run.data.tags["stage"] == "pretrain"
    assert run.inputs.dataset_inputs[0].dataset.digest == ("0123456789" * 7)[:36]
    assert [f.path for f in client.list_artifacts(run.info.run_id, "tables")] == ["tables/curves.csv"]
    images = [f.path for f in client.list_artifacts(run.info.run_id, "images") if f.path.endswith(".png")]
    assert sorted(path.split("+step+")[1][0] for path in images) == ["1", "2", "3"]
    assert not (SPOOLS / "complete").exists()


def test_interrupted_run_is_continued_not_doubled(workplace):
    with pytest.raises(InterruptedError), Tracking() as tracking:
        record(tracking, "resumed", epochs=range(1, 3), fail=True)
    assert run_of("resumed")[1].info.status == "KILLED"
    with Tracking() as tracking:
        record(tracking, "resumed", epochs=range(2, 5))
    client, run = run_of("resumed")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss/total")] == [1, 2, 3, 4]
    assert run.info.status == "FINISHED"


def test_evaluation_continues_the_run_of_the_weights(workplace, monkeypatch):
    with Tracking() as tracking:
        record(tracking, "trained", epochs=range(1, 2))
    _, run = run_of("trained")
    commands = run.data.tags["mlflow.note.content"]
    monkeypatch.setenv("DVC_EXP_NAME", "another")
    kept = {"run_name": "x", "weights_sha256": "weights of trained"}
    with Tracking() as tracking, Tracker(tracking, "evaluate", **kept) as tracker:
        tracker.log_metrics({"test/mean_iou": 0.5}, step=0)
        tracker.describe("well done")
    _, run = run_of("trained")
    assert run.data.metrics["test/mean_iou"] == 0.5
    assert run.data.tags["mlflow.note.content"] == f"well done\n\n{commands}"
    assert run.info.status == "FINISHED"


def test_evaluation_of_unknown_weights_starts_a_run(workplace):
    with Tracking() as tracking, Tracker(tracking, "evaluate", run_name="foreign", weights_sha256="abc") as tracker:
        tracker.log_metrics({"test/mean_iou": 0.5}, step=0)
    client, run = run_of("foreign")
    assert find_run(client, run.info.experiment_id, "abc") == run.info.run_id
    assert run.info.status == "FINISHED"


def test_unreachable_server_costs_one_warning_and_is_caught_up(workplace, monkeypatch, store, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    with Tracking() as tracking:
        record(tracking, "late", epochs=range(1, 3))
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: MLflow at http")]
    assert len(warnings) == 1
    assert (SPOOLS / "late" / "events.jsonl").exists()
    still_down = sync()
    assert still_down.returncode == 1
    assert len(still_down.stderr.splitlines()) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    for sent in (1, 0):  # the second finds nothing left to send
        assert f"sync: {sent} records sent, 0 waiting" in sync().stdout
    client, run = run_of("late")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss/total")] == [1, 2]
    assert not (SPOOLS / "late").exists()


def test_two_senders_of_the_same_spools_send_each_once(workplace, monkeypatch, store):
    """As the senders of stages side by side, when their servers are back."""
    names = [f"shared{number}" for number in range(6)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    with Tracking() as tracking:
        for name in names:
            record(tracking, name, epochs=range(1, 3))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    command = [sys.executable, "-m", "pipeline.cli.main", "sync"]
    senders = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [sender.communicate(timeout=PATIENCE)[1] for sender in senders]
    assert ([sender.returncode for sender in senders], errors) == ([0, 0], ["", ""])
    for name in names:
        client, run = run_of(name)
        assert [m.step for m in client.get_metric_history(run.info.run_id, "loss/total")] == [1, 2]
        assert run.info.status == "FINISHED"
    assert not [path for path in SPOOLS.iterdir() if path.is_dir()]


def test_line_cut_short_by_a_kill_is_dropped(workplace):
    with pytest.raises(InterruptedError), Tracking() as tracking:
        record(tracking, "cut", epochs=range(1, 2), fail=True)
    with (SPOOLS / "cut" / "events.jsonl").open("a") as events:
        events.write(json.dumps({"kind": "metrics", "step": 2})[:10])
    with Tracking() as tracking:
        record(tracking, "cut", epochs=range(2, 3))
    client, run = run_of("cut")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss/total")] == [1, 2]


def test_full_disk_costs_one_warning(workplace, capfd):
    """Writing to /dev/full fails as a full disk does; neither the record nor its end stops a training."""
    with Tracking() as tracking, Tracker(tracking, "full", run_name="full") as tracker:
        tracker._events.close()
        tracker._events = Path("/dev/full").open("a")  # noqa: SIM115 -- the tracker closes it
        tracker.log_metrics({"loss/total": 1.0}, step=1)
        tracker.log_metrics({"loss/total": 0.5}, step=2)
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: .tracking/full")]
    assert len(warnings) == 1
    assert "No space left" in warnings[0]


def test_parameters_are_flat():
    assert flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None}) == {"a.b.c": "1", "a.d": "[1, 2]", "e": "None"}
