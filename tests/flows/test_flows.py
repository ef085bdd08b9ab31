"""Flows on a real Prefect server and real workers, as `make flow` and `prefect deployment run` use them.

One checkout, server and pair of workers serve all tests, so they run in order. What takes its time trains for
thousands of epochs and is ended by the test.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress

import mlflow
import psutil
import pytest
from checkouts import ENDLESS, PATIENCE, becomes, environment, git, git_checkout, one_line, python, set_params
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect_site import Site, engines, processes, trainers
from processes import without_forks

pytestmark = pytest.mark.system


def mlflow_statuses(site: Site) -> set[str]:
    client = mlflow.MlflowClient(f"sqlite:///{site.folder}/mlflow.db")
    return {run.info.status for run in client.search_runs(["1"])}


def newest(site: Site) -> FlowRun:
    from prefect.client.schemas.sorting import FlowRunSort

    with site.client() as client:
        return client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def test_one_command_brings_the_pipeline_to_a_registered_model(site):
    log = (site.folder / "first.log").read_text()
    assert "pretrain: epoch 2/2" in log
    assert "train/local: Completed: 11 of 11 stages ran" in log
    version = mlflow.MlflowClient(f"sqlite:///{site.folder}/mlflow.db").get_model_version_by_alias(
        "fcn8s-gain-smoke", "challenger"
    )
    assert version.tags["variant"] in ("gain", "gain_ext")
    run = newest(site)
    assert any(tag.startswith("CUDA_VISIBLE_DEVICES") for tag in run.tags)
    assert any(tag.startswith(("cpu, ", "cuda:")) for tag in run.tags)
    assert becomes(lambda: set(site.tasks(run.id).values()) == {"Completed"})
    artifacts = site.artifacts(run.id)
    assert float(artifacts["progress"]) == 100.0
    assert "| gain_ext | " in artifacts["summary"]
    assert artifacts["summary"].count("/artifacts/evaluate/index.html)") == 4
    assert artifacts["summary"].count("/#/experiments/") == 8
    rows = json.loads(artifacts["scores"])
    assert [row["model"] for row in rows] == ["pretrained", "control", "gain", "gain_ext"]
    assert [row["model"] for row in rows if row["best"]] == [version.tags["variant"]]
    runs = mlflow.MlflowClient(f"sqlite:///{site.folder}/mlflow.db").search_runs(["1"])
    assert {found.data.tags["prefect_flow_run"] for found in runs} == {str(run.id)}


def test_servers_listen_on_loopback_only(site):
    listening = set()
    for process in processes(site.folder):
        with suppress(psutil.NoSuchProcess):  # the engine of the first run may just be ending
            connections = process.net_connections("inet")
            listening |= {found.laddr.ip for found in connections if found.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_second_run_passes_through(site):
    state = site.finished(site.start())
    assert state.state.message == "0 of 11 stages ran, 0 restored"
    assert becomes(lambda: set(site.tasks(state.id).values()) == {"Unchanged"})


def test_deployment_run_with_other_parameters_is_an_experiment(site):
    before = (site.folder / "params.yaml").read_bytes(), git(site.folder, "status", "--short")
    result = site.run(
        "-m", "prefect", "deployment", "run", "train/local", "--watch", "--param", 'overrides=["seed=1"]',
        "--param", 'targets=["pretrain"]', "--param", "experiment=other-seed",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    tasks = site.tasks(newest(site).id)
    assert sorted(tasks) == ["configure", "download", "prepare", "pretrain"]
    assert "other-seed" in site.run("-m", "dvc", "exp", "list").stdout
    assert ((site.folder / "params.yaml").read_bytes(), git(site.folder, "status", "--short")) == before
    assert not [path for path in (site.folder / ".runs").iterdir() if path.is_dir()]
    names = {run.info.run_name for run in mlflow.MlflowClient(f"sqlite:///{site.folder}/mlflow.db").search_runs(["1"])}
    assert "pretrain-seed1-other-seed" in names


VARIANTS = ("control", "gain", "gain_ext")


def fine_tuned(site: Site, num_epochs: int) -> "subprocess.Popen[str]":
    """A flow in a process of its own that fine-tunes all variants and is told of two devices, where it has none."""
    overrides = json.dumps([f"profiles.smoke.finetune.num_epochs={num_epochs}"])
    command = [sys.executable, "-m", "pipeline.flows", "train", f"overrides={overrides}", 'targets=["finetune"]']
    told = {**environment(site.folder), "PREFECT_API_URL": site.url, "CUDA_VISIBLE_DEVICES": "0,1"}
    return subprocess.Popen(
        command, cwd=site.folder, env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_variants_are_trained_side_by_side_where_the_worker_has_two_devices(site):
    with fine_tuned(site, 1) as running:
        output = running.communicate()[0]
    assert running.returncode == 0, output
    wanted = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[newest(site).id]))
    with site.client() as client:
        runs = {run.name.rsplit("-", 1)[0]: run for run in client.read_task_runs(task_run_filter=wanted)}
    first, second, third = (runs[f"finetune@{variant}"] for variant in VARIANTS)
    assert {first.state_name, second.state_name, third.state_name} == {"Completed"}
    assert second.start_time < first.end_time
    assert third.start_time >= min(first.end_time, second.end_time)


def test_an_interrupted_run_leaves_none_of_its_trainers(site):
    with fine_tuned(site, ENDLESS) as running:
        try:
            assert becomes(lambda: len(list((site.folder / ".runs").glob("*/checkpoints/finetune/*/*.pt"))) == 2)
        finally:
            running.terminate()
            output = running.communicate(timeout=PATIENCE)[0]
    assert running.returncode == -signal.SIGTERM, output
    assert "perhaps out of memory" not in output
    assert not processes(site.folder, "stages.finetune")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"profile": "smok"}, "'smok' is not under profiles; did you mean 'smoke'?"),
        ({"targets": ["finetun"]}, "no stage 'finetun' in dvc.yaml; did you mean 'finetune'?"),
        ({"overrides": ["profiles.smoke.pretrain.lr=1"]}, "params.yaml has no such key"),
        ({"share": True}, "no default DVC remote"),
    ],
)
def test_bad_input_is_one_line_in_the_log(site, parameters, message):
    run = site.finished(site.start(**parameters))
    assert (run.state.name, "\n" in run.state.message) == ("Failed", False)
    assert message in run.state.message
    assert becomes(lambda: message in site.log(run.id))
    assert "Traceback" not in site.log(run.id)


def test_cuda_without_a_gpu_is_one_line(site):
    run = site.finished(site.start(overrides=["runtime.device=cuda"], targets=["pretrain"]))
    assert run.state.name == "Failed"
    assert "pretrain: error: params.yaml: runtime.device: cuda is not available" in run.state.message
    assert "Traceback" not in site.log(run.id)
    shutil.rmtree(site.folder / ".runs")


def test_remote_that_is_not_there_is_one_line(site):
    assert site.run("-m", "dvc", "remote", "add", "--local", "--default", "team", "/nowhere/at/all").returncode == 0
    run = site.finished(site.start(share=True))
    site.run("-m", "dvc", "remote", "remove", "--local", "team")
    assert run.state.name == "Failed"
    assert "the DVC remote does not answer" in run.state.message


def test_servers_that_do_not_answer_are_one_line(site):
    dead = "http://127.0.0.1:9"
    result = python(site.folder, "-m", "pipeline.flows", PREFECT_API_URL=f"{dead}/api")
    one_line(result, "the Prefect server at http://127.0.0.1:9/api", "cannot be reached")
    result = python(site.folder, "-m", "pipeline.cli.main", "flow", PREFECT_API_URL=f"{dead}/api")
    one_line(result, "the Prefect server at http://127.0.0.1:9/api", "cannot be reached")
    result = python(site.folder, "-m", "pipeline.flows", PREFECT_API_URL=site.url, MLFLOW_TRACKING_URI=dead)
    assert result.returncode == 1
    assert "train: Failed: MLflow at http://127.0.0.1:9: 127.0.0.1:9 cannot be reached" in result.stdout


def test_cancelled_run_leaves_no_trainer(site):
    with site.training(ENDLESS) as identity:
        assert becomes(lambda: "RUNNING" in mlflow_statuses(site))
        assert site.run("-m", "prefect", "flow-run", "cancel", str(identity)).returncode == 0
        assert becomes(lambda: not trainers(site))
        # Where the engine is slow to acknowledge, Prefect calls the run crashed for a moment.
        assert becomes(lambda: site.finished(identity).state.name == "Cancelled")
    assert becomes(lambda: "RUNNING" not in mlflow_statuses(site))


def test_a_cancelled_run_ends_itself_where_its_worker_is_deaf(site):
    """As Prefect's worker is once the server was away."""
    (worker,) = without_forks(processes(site.folder, "worker start --pool gpu"))
    with site.training(ENDLESS + 3) as identity:
        worker.suspend()
        try:
            assert site.run("-m", "prefect", "flow-run", "cancel", str(identity)).returncode == 0
            assert becomes(lambda: not trainers(site))
            assert becomes(lambda: not engines(identity))
        finally:
            worker.resume()
        assert becomes(lambda: site.finished(identity).state.name == "Cancelled")


def test_killed_engine_takes_the_trainer_along_and_a_retry_resumes(site):
    with site.training(ENDLESS + 1) as identity:
        assert becomes(lambda: "epoch 3/" in site.log(identity))
        (engine,) = engines(identity)
        engine.kill()
        assert becomes(lambda: not trainers(site))
        assert site.finished(identity).state.name == "Crashed"
        # The worker's last word on it; before, a retry is undone, or ends the worker (docs/prefect.md).
        assert becomes(lambda: "exceeded its memory allocation" in site.log(identity)), site.log(identity)
        assert site.run("-m", "prefect", "flow-run", "retry", str(identity)).returncode == 0
        assert becomes(lambda: "pretrain: resuming after epoch" in site.log(identity)), site.log(identity)
        assert becomes(lambda: len(trainers(site)) == 1)
        # A stage that a signal ends, as when memory runs out, is tried again once and resumes.
        (trainer,) = trainers(site)
        trainer.kill()
        assert becomes(lambda: any(found.pid != trainer.pid for found in trainers(site)))


def test_killed_worker_ends_its_run(site):
    with site.training(ENDLESS + 2) as identity:
        (worker,) = without_forks(processes(site.folder, "worker start --pool gpu"))
        worker.kill()
        assert becomes(lambda: not trainers(site))
        assert site.finished(identity).state.name == "Crashed"


def test_sweep_isolates_failures_and_ends_in_a_table(site):
    """The worker of the pool gpu is dead since the test above; the sweep says so, and `gain flow` starts another."""
    grid = {"seed": [2], "runtime.device": ["cpu", "cuda"]}
    with site.client() as client:
        assert becomes(lambda: client.read_workers_for_work_pool("gpu")[0].status.value == "OFFLINE")
    lonely = site.finished(site.start("sweep/local", grid=grid))
    assert lonely.state.name == "Failed"
    assert "no worker of the pool gpu is online" in lonely.state.message
    parameters = [f"grid={json.dumps(grid)}", 'targets=["pretrain"]']
    result = site.run("-m", "pipeline.cli.main", "flow", "--deployment", "sweep/local", *parameters)
    assert result.returncode == 1
    run = newest_of(site, "sweep")
    assert run.state.message == f"1 of 2 points completed; not {run.name}-02"
    rows = json.loads(site.artifacts(run.id)["sweep"])
    assert [row["state"] for row in rows] == ["Completed", "Failed"]
    assert rows[0]["overrides"] == 'seed=2 runtime.device="cpu"'
    assert f"{run.name}-01" in site.run("-m", "dvc", "exp", "list").stdout


def newest_of(site: Site, flow: str) -> FlowRun:
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    with site.client() as client:
        wanted = FlowFilter(name=FlowFilterName(any_=[flow]))
        return client.read_flow_runs(flow_filter=wanted, sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def test_points_are_checked_before_the_first_one_trains(site):
    run = site.finished(site.start("sweep/local", points=[["seed=1"], ["sed=2"]]))
    assert "sed=2: params.yaml has no such key" in run.state.message
    run = site.finished(site.start("sweep/local"))
    assert "a grid or a list of points" in run.state.message


def test_sweep_over_a_pool_that_is_gone_is_one_line(site):
    with site.client() as client:
        pool = client.create_work_pool(WorkPoolCreate(name="gone", type="process"))
        train = client.read_deployment_by_name("train/local")
        client.create_deployment(train.flow_id, "gone", work_pool_name=pool.name)
        client.delete_work_pool(pool.name)
    for deployment, message in [("train/gone", "has no work pool"), ("train/nowhere", "no deployment 'train/nowhere'")]:
        run = site.finished(site.start("sweep/local", points=[["seed=1"]], deployment=deployment))
        assert run.state.name == "Failed"
        assert message in run.state.message


def test_promotion_and_retraining(site):
    params = site.folder / "params.yaml"
    committed = params.read_bytes()
    run = site.finished(site.start("promote/local"))
    assert (run.state.name, "stays challenger: mean_iou at least 0.5" in run.state.message) == ("Refused", True)
    set_params(site.folder, {".promote": {"at_least": {"mean_iou": 0.01}}})
    run = site.finished(site.start("promote/local", reason="first"))
    params.write_bytes(committed)
    assert (run.state.name, "is the champion now" in run.state.message) == ("Promoted", True)
    assert "scores present and finite" in site.artifacts(run.id)["promotion"]
    run = site.finished(site.start("promote/local"))
    assert "no version with the alias challenger" in run.state.message
    assert site.finished(site.start("retrain/local")).state.name == "Unchanged"


def test_second_clone_takes_from_the_remote_what_the_first_trained(site, tmp_path):
    """Workers without a shared disk: a DVC remote carries data, models and the run-cache."""
    (tmp_path / "store").mkdir()
    first, second = git_checkout(tmp_path / "first"), tmp_path / "second"
    git(first, "clone", "--quiet", str(first), str(second))
    messages = []
    for folder in (first, second):
        python(folder, "-m", "dvc", "remote", "add", "--default", "team", str(tmp_path / "store"))
        command = ("-m", "pipeline.flows", "train", "share=true", 'targets=["evaluate"]')
        result = python(folder, *command, PREFECT_API_URL=site.url)
        assert result.returncode == 0, result.stdout + result.stderr
        messages.append(result.stdout.splitlines()[-1])
        slow = ("pretrain", "classify", "finetune", "evaluate")
        ran = [stage for stage in slow if f"> python -m stages.{stage}" in result.stderr]
        assert ran == ([] if folder == second else list(slow))
    assert messages == [
        "train: Completed: 10 of 10 stages ran, 0 restored",
        "train: Completed: 1 of 10 stages ran, 9 restored",
    ]
    weights = "models/finetune/gain.safetensors"
    for result in (weights, "reports/evaluate/metrics.json", "reports/evaluate/index.html"):
        assert (first / result).read_bytes() == (second / result).read_bytes()


def test_down_stops_what_was_started_and_nothing_else(site):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], cwd=site.folder)
    try:
        assert site.run("-m", "pipeline.cli.main", "down").stdout.startswith("down: stopped ")
        assert becomes(lambda: [found.pid for found in processes(site.folder)] == [other.pid])
        assert "no server or worker of `gain flow` was running" in site.run("-m", "pipeline.cli.main", "down").stdout
    finally:
        other.kill()
        other.wait()


def test_environment_of_tests_knows_no_server_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://example.org")
    assert "PREFECT_API_URL" not in environment(tmp_path)
    assert os.environ["PREFECT_API_URL"]
