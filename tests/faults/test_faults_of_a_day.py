"""Forty kills over all stages, and full disks: `make fault-test` runs this, in about half an hour.

What is killed at random is run again with the same command, until the pipeline has ended; then every output is that of
a pipeline that nobody disturbed, MLflow has one run of each training, and nothing is left that a person must remove.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml
from checkouts import PATIENCE, becomes, dvc, dvc_checkout, environment, git_checkout, tracking_database
from mlflow import MlflowClient
from prefect_site import processes
from processes import without_forks
from servers import free_port, running

pytestmark = pytest.mark.system

SEED = 0  # of what is killed, when and how
KILLS = 40
KILLS_OF_A_STAGE = 4  # then it may end
LATE = 1.2  # times the undisturbed duration of a stage: some kills hit what comes after it
SOON_SECONDS = 20.0  # within which everything else ends, too
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STAGES = (
    "configure", "download", "prepare", "counterfactual", "pretrain", "classify", "finetune@control", "finetune@gain",
    "finetune@gain_ext", "evaluate", "register",
)  # fmt: skip
TRAININGS = {"pretrain-seed0", "classify-seed0", "control-seed0", "gain-seed0", "gain_ext-seed0"}
MODEL = "fcn8s-gain-smoke"
ROOM = 64 * 1024  # bytes of a full disk: enough to begin, too little for weights or images


def outputs_of(folder: Path) -> dict[str, str]:
    """Digest by output, as dvc.lock has them; that of register names runs of its own."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for name in lock if name != "register" for out in lock[name]["outs"]}


def program_of(stage: str) -> list[str]:
    """The arguments by which the process of a stage is known."""
    name, _, variant = stage.partition("@")
    return [f"stages.{name}", *([variant] if variant else [])]


def at_work(folder: Path, stage: str) -> list[psutil.Process]:
    wanted = program_of(stage)
    found = [found for found in processes(folder, *wanted) if wanted[0] in found.info["cmdline"]]  # no shell, no DVC
    return without_forks(found)


def of_pipeline(folder: Path) -> list[psutil.Process]:
    """All processes in a folder but the sender, which hands over to MLflow what trainings have recorded, and ends."""
    return [found for found in processes(folder) if "pipeline.tracking.sender" not in found.info["cmdline"]]


def check_records(folder: Path) -> None:
    """One run of each training in MLflow, one version of the model, no leftovers."""
    assert becomes(lambda: not processes(folder)), processes(folder)  # the sender has ended
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("gain").experiment_id])
    assert Counter((run.info.run_name, run.info.status) for run in runs) == Counter(
        {(name, "FINISHED"): 1 for name in TRAININGS}
    )
    assert len(client.search_model_versions(f"name='{MODEL}'")) == 1
    assert [str(path) for path in folder.rglob("*.partial*")] == []


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> tuple[dict[str, str], dict[str, float]]:
    """The outputs of a pipeline that runs through, and the seconds that the process of each stage takes."""
    folder = dvc_checkout(tmp_path_factory.mktemp("undisturbed") / "repo")
    tracking_database(folder / "mlflow.db")
    seconds = {}
    for stage in STAGES:
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
        with subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL) as started:
            assert becomes(lambda stage=stage: at_work(folder, stage))
            begin = time.monotonic()
            assert becomes(lambda stage=stage: not at_work(folder, stage))
            seconds[stage] = time.monotonic() - begin
        assert started.returncode == 0, stage
    check_records(folder)
    return outputs_of(folder), seconds


@dataclass
class Disturbed:
    """A pipeline whose processes are killed."""

    folder: Path
    prefect_url: str
    chance: random.Random
    kills: list[tuple[str, str, str]] = field(default_factory=list)  # stage, what was killed, by which signal

    def start(self, stage: str, *, flow: bool) -> "subprocess.Popen[str]":
        arguments = ["-m", "dvc", "repro", stage]
        if flow:
            arguments = ["-m", "pipeline.flows", "train", f'targets=["{stage}"]']
        env = {**environment(self.folder), "PREFECT_API_URL": self.prefect_url}
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def disturb(self, stage: str, seconds: float) -> bool:
        """Run up to a stage and kill something during it, or soon after; whether the stage had ended before."""
        victim, number = self.chance.choice(("dvc", "stage", "flow")), self.chance.choice(SIGNALS)
        started = self.start(stage, flow=victim == "flow")
        becomes(lambda: at_work(self.folder, stage) or started.poll() is not None)
        time.sleep(self.chance.uniform(0, LATE * seconds))
        targets = at_work(self.folder, stage)
        if started.poll() is not None or (victim == "stage" and not targets):
            output = started.communicate()[0]
            assert started.returncode == 0, output
            return True
        if victim == "stage":
            targets[0].send_signal(number)
        elif number == signal.SIGINT:  # as a terminal sends it
            os.killpg(started.pid, number)
        else:
            started.send_signal(number)
        self.kills.append((stage, victim, number.name))
        started.communicate(timeout=PATIENCE)
        assert becomes(lambda: not of_pipeline(self.folder), seconds=SOON_SECONDS), (
            self.kills[-1],
            [found.info["cmdline"] for found in of_pipeline(self.folder)],
        )
        return False

    def end(self, stage: str) -> None:
        result = dvc(self.folder, "repro", stage)
        assert result.returncode == 0, f"after {self.kills[-1:]}: {result.stdout}{result.stderr}"


@pytest.fixture
def prefect_server(tmp_path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    env = {**environment(tmp_path), "PREFECT_HOME": str(tmp_path / "prefect")}
    with running(command, f"http://127.0.0.1:{port}/api/health", tmp_path / "server.log", cwd=tmp_path, env=env):
        yield f"http://127.0.0.1:{port}/api"


def test_forty_kills_leave_what_an_undisturbed_pipeline_leaves(undisturbed, prefect_server, tmp_path, capsys):
    outputs, seconds = undisturbed
    chance, kills = random.Random(SEED), []
    while len(kills) < KILLS:
        folder = git_checkout(tmp_path / f"repo{len(kills)}")
        tracking_database(folder / "mlflow.db")
        disturbed = Disturbed(folder, prefect_server, chance)
        for stage in STAGES:
            for _ in range(KILLS_OF_A_STAGE):
                if disturbed.disturb(stage, seconds[stage]):
                    break
            disturbed.end(stage)
        assert outputs_of(folder) == outputs
        check_records(folder)
        kills += disturbed.kills
    with capsys.disabled():
        print(
            f"\n{len(kills)} kills:", ", ".join(f"{' '.join(kind)} {n}" for kind, n in sorted(Counter(kills).items()))
        )
    assert {stage for stage, _, _ in kills} == set(STAGES)


class FullDisk:
    """A folder of a checkout on a disk of its own, with little room, in a mount namespace that lasts."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._place = folder, folder / name
        self._place.mkdir(parents=True, exist_ok=True)
        self._holder = subprocess.Popen(["unshare", "--user", "--map-root-user", "--mount", "sleep", "infinity"])
        assert becomes(lambda: self.call("mountpoint", "/").returncode == 0)
        for kind in ("mnt", "user"):  # until they are its own, a mount would be everybody's
            assert becomes(lambda kind=kind: self._namespace(self._holder.pid, kind) != self._namespace("self", kind))
        self._must("mount", "-t", "tmpfs", "-o", f"size={ROOM}", "disk", str(self._place))

    @staticmethod
    def _namespace(process: object, kind: str) -> str:
        return str(Path(f"/proc/{process}/ns/{kind}").readlink())

    def call(self, *command: str) -> "subprocess.CompletedProcess[str]":
        enter = ["nsenter", "--target", str(self._holder.pid), "--user", "--mount", "--preserve-credentials"]
        return subprocess.run(
            [*enter, f"--wd={self._folder}", *command],
            env=environment(self._folder), capture_output=True, text=True, check=False,
        )  # fmt: skip

    def repro(self) -> "subprocess.CompletedProcess[str]":
        return self.call(sys.executable, "-m", "dvc", "repro")

    def grow(self) -> None:
        self._must("mount", "-o", "remount,size=1g", str(self._place))

    def _must(self, *command: str) -> None:
        result = self.call(*command)
        assert result.returncode == 0, result.stderr

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


@pytest.mark.parametrize("name", ["data", "models", "checkpoints", "reports", ".dvc/cache"])
def test_a_full_disk_is_said_in_a_line_and_costs_nothing(undisturbed, tmp_path, name):
    folder = dvc_checkout(tmp_path / "repo")
    tracking_database(folder / "mlflow.db")
    disk = FullDisk(folder, name)
    try:
        failed = disk.repro()
        said = [
            line
            for line in (failed.stdout + failed.stderr).splitlines()
            if "disk is full" in line or "No space left" in line
        ]
        assert failed.returncode != 0, failed.stdout
        assert said, failed.stdout + failed.stderr
        assert "Traceback" not in failed.stdout + failed.stderr
        disk.grow()
        again = disk.repro()
        assert again.returncode == 0, again.stdout + again.stderr
    finally:
        disk.close()
    assert outputs_of(folder) == undisturbed[0]
    check_records(folder)


@pytest.mark.parametrize("name", [".tracking", "mlruns"])
def test_a_disk_that_is_full_of_records_stops_no_training(undisturbed, tmp_path, name):
    folder = dvc_checkout(tmp_path / "repo")
    tracking_database(folder / "mlflow.db")
    disk = FullDisk(folder, name)
    try:
        result = disk.repro()
        everything = result.stdout + result.stderr
        assert "Traceback" not in everything
        assert "No space left on device" in everything, everything
        disk.grow()
        result = disk.repro()
        assert result.returncode == 0, result.stdout + result.stderr
    finally:
        disk.close()
    assert outputs_of(folder) == undisturbed[0]
