"""An MLflow server that fails while a run is recorded: the recording goes on, and everything arrives once."""

import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from checkouts import PATIENCE, becomes
from faulty_proxy import FaultyProxy, running_proxy
from forked_sender import sync
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from PIL import Image
from servers import free_port, running

from pipeline.tracking import sender
from pipeline.tracking.tracker import SPOOLS, Tracker, Tracking

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("forked_senders")]

REPOSITORY = Path(__file__).parents[2]
STEPS = 4


@pytest.fixture(scope="module")
def upstream(tmp_path_factory) -> Iterator[str]:
    """A real MLflow server that keeps artifacts itself."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    url = f"http://127.0.0.1:{port}"
    with running(command, f"{url}/health", folder / "log", cwd=folder):
        yield url


@pytest.fixture
def proxy(upstream, tmp_path, monkeypatch) -> Iterator[FaultyProxy]:
    """An empty working directory that tracks into the server through a proxy without faults."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("pipeline.tracking.tracker.FINISH_SECONDS", PATIENCE)
    proxy = FaultyProxy(upstream)
    with running_proxy(proxy) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        yield proxy


def record(tracking: Tracking, name: str, at_step: dict[int, object] | None = None) -> None:
    """A run of four steps with a metric and a picture each; at some steps something is done first."""
    with Tracker(tracking, name, run_name=name, params={"rate": 0.1}, tags={"stage": "finetune"}) as tracker:
        for step in range(1, STEPS + 1):
            if at_step and step in at_step:
                at_step[step]()
            tracker.log_metrics({"loss/total": 1.0 / step}, step=step)
            tracker.log_image("attention", Image.new("RGB", (8, 8), "red"), step=step)
        Path("curves.csv").write_text("epoch\n")
        tracker.log_artifact(Path("curves.csv"))


def check_complete(upstream: str, name: str) -> Run:
    """One run, finished, with everything once."""
    client = MlflowClient(upstream)
    (run,) = client.search_runs(["1"], f"tags.mlflow.runName = '{name}'")
    identity = run.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params == {"rate": "0.1"}
    assert [metric.step for metric in client.get_metric_history(identity, "loss/total")] == [1, 2, 3, 4]
    pictures = [re.split("[+%]", Path(file.path).name)[2] for file in client.list_artifacts(identity, "images")]
    assert Counter(pictures) == {str(step): 2 for step in range(1, STEPS + 1)}  # PNG and WebP
    assert "curves.csv" in [file.path for file in client.list_artifacts(identity)]
    assert not (SPOOLS / name).exists()
    return run


def warnings(capfd) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.strip()]


def test_server_that_dies_in_mid_run_is_caught_up_when_it_is_back(proxy, upstream, capfd, monkeypatch):
    monkeypatch.setattr(sender, "RETRY_SECONDS", 0.1)
    reached = SPOOLS / "dying" / "state.json"

    def die() -> None:
        assert becomes(lambda: '"events.jsonl": 4' in reached.read_text() if reached.exists() else False)
        proxy.dead = True

    with Tracking() as tracking:
        record(tracking, "dying", {3: die})
    (warning,) = warnings(capfd)
    assert warning.startswith("warning: MLflow at http://127.0.0.1:")
    assert "`gain sync`" in warning
    assert sync().returncode == 1
    proxy.dead = False
    assert "1 records sent, 0 waiting" in sync().stdout
    assert check_complete(upstream, "dying")
    assert "0 records sent" in sync().stdout


def test_answers_that_are_lost_do_not_double_anything(proxy, upstream, capfd):
    """The server did what it was asked and died before saying so, at the run, each metric, picture and artifact."""
    proxy.dead = True
    with Tracking() as tracking:
        record(tracking, "lost")
    assert len(warnings(capfd)) == 1
    proxy.dead, proxy.losing = False, True
    assert becomes(sender.send_waiting)
    lost = Counter(name.rpartition(".")[2] for name in proxy.lost.values())
    # The first log-batch has the parameters.
    assert lost == {"create": 1, "log-batch": 1 + STEPS, "png": STEPS, "webp": STEPS, "csv": 1}
    check_complete(upstream, "lost")


def test_slow_server_does_not_hold_up_a_training(proxy, upstream, capfd):
    proxy.delay = 0.3
    with Tracking() as tracking:
        begin = time.monotonic()
        record(tracking, "slow")
        recorded = time.monotonic() - begin
    assert recorded < proxy.delay * 4 * STEPS  # the server takes longer: a request for a metric, three for a picture
    assert warnings(capfd) == []
    check_complete(upstream, "slow")


def test_stage_waits_for_a_slow_server_only_so_long(proxy, upstream, capfd, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.tracker.FINISH_SECONDS", 15.0)
    proxy.delay = 3.0
    with Tracking() as tracking:
        record(tracking, "slower")
        begin = time.monotonic()
    assert time.monotonic() - begin < 60.0  # which the server takes by far, at 3 s a request
    (warning,) = warnings(capfd)
    assert "MLflow is slow" in warning
    proxy.delay = 0.0
    assert becomes(lambda: sync().returncode == 0 and not (SPOOLS / "slower").exists())
    check_complete(upstream, "slower")


def test_full_disk_under_the_artifacts_costs_one_warning(proxy, upstream, capfd):
    proxy.full = True
    with Tracking() as tracking:
        record(tracking, "full")
    (warning,) = warnings(capfd)
    assert "too many 500 error responses" in warning
    proxy.full = False
    assert "1 records sent, 0 waiting" in sync().stdout
    check_complete(upstream, "full")


def test_record_that_is_refused_does_not_hold_up_the_others(proxy, upstream, capfd):
    proxy.full = True
    with Tracking() as tracking:
        record(tracking, "a-deleted")
        record(tracking, "b-kept")
    proxy.full = False
    client = MlflowClient(upstream)
    for run in client.search_runs(["1"], "tags.mlflow.runName = 'a-deleted'"):
        client.delete_run(run.info.run_id)
    result = sync()
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert ".tracking/a-deleted keeps its record" in line
    check_complete(upstream, "b-kept")


def test_artifact_paths_cannot_leave_their_root(proxy, upstream, tmp_path_factory):
    with Tracking() as tracking:
        record(tracking, "inside")
    client = MlflowClient(upstream)
    (run,) = client.search_runs(["1"], "tags.mlflow.runName = 'inside'")
    before = sorted(tmp_path_factory.getbasetemp().glob("**/escaped*"))
    for path in ("../escaped.txt", "..%2Fescaped.txt", "%2Ftmp%2Fescaped.txt"):
        address = f"{upstream}/api/2.0/mlflow-artifacts/artifacts/1/{run.info.run_id}/artifacts/{path}"
        # A session would tidy the path up before it sends it.
        request = requests.Request("PUT", address, data=b"x").prepare()
        request.url = address
        assert requests.Session().send(request, timeout=PATIENCE).status_code >= 400
    assert sorted(tmp_path_factory.getbasetemp().glob("**/escaped*")) == before == []
    with pytest.raises(MlflowException, match="Failed to download artifacts"):
        client.download_artifacts(run.info.run_id, "../../../mlflow.db")


def test_password_of_the_address_is_not_shown(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hidden@127.0.0.1:9")
    with Tracking() as tracking:
        record(tracking, "unreachable")
    shown = capfd.readouterr()
    assert "warning: MLflow at http://127.0.0.1:9: " in shown.err
    assert "hidden" not in shown.out + shown.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hidden" in path.read_bytes()]
