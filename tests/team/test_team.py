"""A team's set-up with real parts: Prefect and MLflow servers on PostgreSQL, two workers, one DVC remote.

`make team-test` runs this; the default tests do not, since it needs PostgreSQL (Debian's package) and takes minutes.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import requests
from checkouts import ENDLESS, PATIENCE, becomes, environment, git, git_checkout
from mlflow import MlflowClient
from mlflow.entities import Metric
from rivals import promote_in_two_processes
from servers import free_port, running

pytestmark = pytest.mark.system

LONG = ["profile=smoke", f"profiles.smoke.pretrain.num_epochs={ENDLESS}"]


def postgres_command(name: str, *arguments: str) -> list[str]:
    """PostgreSQL refuses to be run by root."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        pytest.fail("make team-test needs PostgreSQL: apt-get install postgresql")
    command = [str(folders[-1] / name), *arguments]
    return ["runuser", "-u", "postgres", "--", *command] if os.getuid() == 0 else command


@pytest.fixture
def postgres(tmp_path_factory) -> Iterator[str]:
    """Address of a database server of its own, with the databases prefect and mlflow."""
    folder = Path("/tmp") / f"team-{os.getpid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    port = free_port()

    def call(name: str, *arguments: str) -> None:
        result = subprocess.run(
            postgres_command(name, *arguments), capture_output=True, text=True, cwd="/", check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr

    data = str(folder / "data")
    call("initdb", "--pgdata", data, "--username", "gain", "--auth", "trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    call("pg_ctl", "--pgdata", data, "--wait", "--log", f"{folder}/log", "--options", options, "start")
    try:
        for database in ("prefect", "mlflow"):
            call("createdb", "--host", "127.0.0.1", "--port", str(port), "--username", "gain", database)
        yield f"gain@127.0.0.1:{port}"
    finally:
        call("pg_ctl", "--pgdata", data, "--wait", "--mode", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.mark.parametrize("served", [True, False], ids=["served", "direct"])
def test_of_two_promotions_at_once_on_postgresql_one_wins(postgres, tmp_path, monkeypatch, served):
    """Through a server and without one; the loser says who won, and the audit trail has one entry."""
    database = f"postgresql+psycopg2://{postgres}/mlflow"
    env = environment(tmp_path)
    with ExitStack() as stack:
        uri = database
        if served:
            port = free_port()
            uri = f"http://127.0.0.1:{port}"
            command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
            command += ["--backend-store-uri", database, "--workers", "1"]
            command += ["--artifacts-destination", str(tmp_path / "artifacts")]
            stack.enter_context(running(command, f"{uri}/health", tmp_path / "log", cwd=tmp_path, env=env))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        client = MlflowClient()
        for index in range(2):
            name, folder = f"net{index}", tmp_path / str(index)
            folder.mkdir()
            version = challenger(client, name)
            winner, loser = promote_in_two_processes(folder, name, uri)
            assert winner == f"version {version} of {name} is the champion now (there was none)\n"
            assert f"refused: {name}: another promotion came first" in loser
            assert str(client.get_model_version_by_alias(name, "champion").version) == version
            assert list(client.get_registered_model(name).tags) == ["promotion.1"]


def challenger(client: MlflowClient, name: str) -> str:
    """A new registered model whose first version may be promoted; the version."""
    experiment = client.create_experiment(f"runs of {name}")
    run = client.create_run(experiment).info.run_id
    model = client.create_logged_model(experiment, source_run_id=run).model_id
    scores = {"mean_iou": 0.8, "attention_iou": 0.4, "worst_group": 0.1}
    client.log_batch(run, [Metric(key, value, 1, 0, model_id=model, run_id=run) for key, value in scores.items()])
    client.create_registered_model(name)
    version = client.create_model_version(name, f"models:/{model}", run, model_id=model).version
    client.set_registered_model_alias(name, "challenger", version)
    return str(version)


def test_two_workers_share_servers_and_remote(postgres, tmp_path):
    """Every point of a sweep runs once, each in a clone of its own; what they have in common is trained once."""
    prefect_url, mlflow_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    source = git_checkout(tmp_path / "source")
    (tmp_path / "store").mkdir()
    base = {
        **environment(tmp_path),
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    base |= {
        "PREFECT_API_URL": f"{prefect_url}/api",
        "MLFLOW_TRACKING_URI": mlflow_url,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    del base["PYTHONPATH"]
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    git(source, "config", "user.name", "test")
    git(source, "config", "user.email", "test@localhost")
    git(source, "config", "receive.denyCurrentBranch", "ignore")
    subprocess.run(
        [sys.executable, "-m", "dvc", "remote", "add", "--default", "team", str(tmp_path / "store")],
        cwd=source,
        check=True,
    )
    git(source, "commit", "--quiet", "--all", "--message", "Add the remote")
    with ExitStack() as stack:
        server = ["server", "start", "--host", "127.0.0.1", "--port", prefect_url.rsplit(":", 1)[1]]
        database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{postgres}/prefect"}
        mlflow = ["server", "--host", "127.0.0.1", "--port", mlflow_url.rsplit(":", 1)[1]]
        mlflow += ["--backend-store-uri", f"postgresql+psycopg2://{postgres}/mlflow", "--workers", "1"]
        mlflow += ["--artifacts-destination", str(tmp_path / "artifacts")]
        for command, url, env in (
            ([*prefect, *server], f"{prefect_url}/api/health", {**base, **database}),
            ([sys.executable, "-m", "mlflow", *mlflow], f"{mlflow_url}/health", base),
        ):
            log = tmp_path / f"{command[2]}.log"
            stack.enter_context(running(command, url, log, cwd=tmp_path, env=env))

        def call(*arguments: str, cwd: Path = source) -> str:
            here = {**base, "PWD": str(cwd), "GAIN_REPOSITORY": str(source), "GAIN_IMAGE": "unused"}
            result = subprocess.run(
                [*prefect, *arguments], env=here, cwd=cwd, capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, result.stdout + result.stderr
            return result.stdout

        # The deployments `cluster`, but on process workers: every run is a fresh clone, as in a pod.
        call("work-pool", "create", "gpu-cluster", "--type", "process")
        call("deploy", "--name", "*/cluster")
        call("automation", "create", "--from-file", "deploy/heartbeat.yaml")
        (tmp_path / "workspace").mkdir()  # the volume of all pods
        pod = {**base, "GAIN_WORKSPACE": str(tmp_path / "workspace")}

        def start_worker(index: int) -> None:
            home, visible = tmp_path / f"worker{index}", {**pod, "CUDA_VISIBLE_DEVICES": str(index)}
            home.mkdir()
            start = ["worker", "start", "--pool", "gpu-cluster", "--name", f"gpu{index}", "--limit", "2"]
            stack.enter_context(running([*prefect, *start], None, tmp_path / f"{home.name}.log", cwd=home, env=visible))

        for index in range(2):
            start_worker(index)
        call("deployment", "run", "train/cluster", "--watch", "--param", "profile=smoke")
        points = [["seed=0", f"profiles.smoke.finetune.num_epochs={n}"] for n in (1, 3, 4)]
        sweep = [
            "--param",
            f"points={json.dumps(points)}",
            "--param",
            'targets=["evaluate"]',
            "--param",
            "profile=smoke",
        ]
        call("deployment", "run", "sweep/cluster", "--watch", *sweep)
        logs = "".join((tmp_path / f"worker{index}.log").read_text() for index in range(2))
        assert all("python -m stages.finetune" in (tmp_path / f"worker{i}.log").read_text() for i in range(2))
        assert logs.count("> python -m stages.pretrain") == 1
        assert logs.count("> python -m stages.finetune control") == 1 + len(points)
        runs = requests.post(
            f"{mlflow_url}/api/2.0/mlflow/runs/search", json={"experiment_ids": ["1"]}, timeout=10
        ).json()
        names = [run["info"]["run_name"] for run in runs["runs"]]
        assert sum(name.startswith("pretrain-seed0") for name in names) == 1
        assert sum(name.startswith("gain_ext-seed0") for name in names) == 1 + len(points)
        identity = call("deployment", "run", "train/cluster", "--param", f"overrides={json.dumps(LONG)}").split(
            "UUID: "
        )[1]
        identity = identity.split()[0]
        assert becomes(
            lambda: f"epoch 3/{ENDLESS}" in call("flow-run", "logs", identity, "--reverse", "--num-logs", "100"),
            PATIENCE,
        )
        for word in ("worker start --pool gpu-cluster", "prefect.engine"):  # as when their machines are lost
            for process in psutil.process_iter(["cmdline", "cwd"]):
                ours = (process.info["cwd"] or "").startswith(str(tmp_path)) or "gpu-cluster" in word
                if ours and word in " ".join(process.info["cmdline"] or []):
                    process.kill()
        state = f"{prefect_url}/api/flow_runs/{identity}"
        assert requests.get(state, timeout=10).json()["state_name"] == "Running"
        assert becomes(lambda: requests.get(state, timeout=10).json()["state_name"] == "Crashed", 150)
        start_worker(2)  # another machine, which has the volume alone
        call("flow-run", "retry", identity)
        assert becomes(lambda: "pretrain: resuming after epoch" in (tmp_path / "worker2.log").read_text(), PATIENCE)
        call("flow-run", "cancel", identity)
        assert becomes(lambda: requests.get(state, timeout=10).json()["state_name"] in ("Cancelled", "Crashed"), 150)
    assert len(git(source, "for-each-ref", "refs/exps").splitlines()) >= len(points)
