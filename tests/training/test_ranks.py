"""Several ranks learn what one process learns, one of them writes, and all end with the first that is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import mlflow
import psutil
import pytest
import ranks_training
from checkouts import (
    ENDLESS,
    PATIENCE,
    REPOSITORY,
    becomes,
    checkout,
    environment,
    one_line,
    python,
    set_params,
    stage,
    tracking_database,
)
from servers import free_port

from pipeline.base.params import load_params
from stages.launch import run_on_ranks

pytestmark = pytest.mark.system

SCRIPT = REPOSITORY / "tests" / "ranks_training.py"


CASES = {
    "batch normalisation learns": {"update_batch_norm": 1, "accumulate_grad_batches": 1, "uneven": 0},
    "ranks without an object": {"update_batch_norm": 0, "accumulate_grad_batches": 1, "uneven": 1},
} | {f"step in {parts} parts": {"accumulate_grad_batches": parts} for parts in (1, 2, 4, 8)}


@pytest.fixture(scope="module")
def trained_together(tmp_path_factory) -> dict[str, list[dict]]:
    """What each of two ranks knows at the end of every case; they are started once for all cases."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(CASES), "2"]
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from stages.launch import run_on_ranks; "
        f"sys.exit(run_on_ranks('test', {command!r}, 2))"
    )
    result = python(REPOSITORY, "-c", code)
    assert result.returncode == 0, result.stderr
    return {name: [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)] for name in CASES}


def trained_alone(folder: Path, **options: int) -> dict:
    """The rows of its record and its weights."""
    ranks_training.main(folder, {"alone": options}, num_ranks=1)
    return json.loads((folder / "alone.0.json").read_text())


@pytest.mark.parametrize("case", ["batch normalisation learns", "ranks without an object"])
def test_two_ranks_learn_what_one_process_learns(tmp_path, trained_together, case):
    """Same losses, dead maps, gradient norms, validation scores and weights, to float32's rounding over six steps."""
    alone = trained_alone(tmp_path, **CASES[case])
    both = trained_together[case]
    assert len(alone["rows"]) == 2
    assert "train/dead_map_rate" in alone["rows"][0]
    for rank in both:
        for row, expected in zip(rank["rows"], alone["rows"], strict=True):
            norms = {name for name in row if "gradient_norm" in name}  # large where a map is about to die
            assert {name: row[name] for name in norms} == pytest.approx({n: expected[n] for n in norms}, rel=0.03)
            others = row.keys() - norms
            assert {n: row[n] for n in others} == pytest.approx({n: expected[n] for n in others}, rel=1e-3, nan_ok=True)
    assert both[0]["weights"] == both[1]["weights"]
    assert both[0]["weights"] == pytest.approx(alone["weights"], rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def whole_step(tmp_path_factory) -> dict:
    """Losses and gradients of a step in float64 that one process takes in one part."""
    folder = tmp_path_factory.mktemp("whole")
    ranks_training.main(folder, {"step": {"accumulate_grad_batches": 1}}, num_ranks=1)
    return json.loads((folder / "step.0.json").read_text())


def test_the_step_that_is_shared_out_has_what_parts_lack(whole_step):
    """The comparison below sees dead maps and every loss."""
    assert set(whole_step["losses"]) == {f"loss/{name}" for name in (*ranks_training.LOSS_NAMES, "total")}
    assert min(whole_step["losses"].values()) > 1e-3
    assert 0 < whole_step["dead"] < ranks_training.NUM_IMAGES


@pytest.mark.parametrize("num_parts", [1, 2, 4, 8])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_parts_and_ranks_share_out_one_step(tmp_path, trained_together, whole_step, num_ranks, num_parts):
    """Every loss and gradient is that of the whole step, to float64's rounding."""
    name = f"step in {num_parts} parts"
    if num_ranks == 1:
        ranks_training.main(tmp_path, {name: CASES[name]}, num_ranks=1)
        found = [json.loads((tmp_path / f"{name}.0.json").read_text())]
    else:
        found = trained_together[name]
    for rank in found:
        assert rank["losses"] == pytest.approx(whole_step["losses"], rel=1e-12, abs=1e-12)
        assert rank["gradients"].keys() == whole_step["gradients"].keys()
        for parameter, expected in whole_step["gradients"].items():
            assert rank["gradients"][parameter] == pytest.approx(expected, rel=1e-12, abs=1e-12), parameter


# ---- stages ----------------------------------------------------------------------------------------------------------


def rank_processes(folder: Path) -> list[psutil.Process]:
    """Those that train in a checkout, rank 0 first; the one that started them is none of them."""
    found = {}
    for process in psutil.process_iter(["cmdline", "environ", "cwd"]):
        line, variables = process.info["cmdline"] or [], process.info["environ"] or {}
        if process.info["cwd"] == str(folder) and "stages.pretrain" in line and "RANK" in variables:
            found[int(variables["RANK"])] = process
    return [found[rank] for rank in sorted(found)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A checkout for two processes whose data is ready."""
    folder = checkout(tmp_path_factory.mktemp("ranks") / "repo", **{".runtime.devices": 2, ".runtime.device": "cpu"})
    for name in ("download", "prepare"):
        assert stage(folder, name).returncode == 0
    tracking_database(folder / "mlflow.db")
    return folder


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    return folder


def pretrained(folder: Path) -> subprocess.CompletedProcess[str]:
    assert stage(folder, "configure").returncode == 0
    return python(folder, "-m", "stages.pretrain")


def test_one_rank_writes_one_record(copy):
    result = pretrained(copy)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("pretrain: epoch 2/2") == 1
    assert "cpu, 2 x 1 threads" in result.stdout
    client = mlflow.MlflowClient(f"sqlite:///{copy}/mlflow.db")
    (run,) = client.search_runs(["1"])
    assert len(client.get_metric_history(run.info.run_id, "loss/segmentation")) == 2
    assert run.data.metrics["mfu"] > 0
    assert (run.data.params["runtime.devices"], run.info.status) == ("2", "FINISHED")
    assert run.data.tags["threads"] == "1"


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_ends_all_and_a_second_run_resumes(copy, rank):
    set_params(copy, {".pretrain.num_epochs": ENDLESS})
    assert stage(copy, "configure").returncode == 0
    command = [sys.executable, "-m", "stages.pretrain"]
    with subprocess.Popen(command, cwd=copy, env=environment(copy), stderr=subprocess.PIPE, text=True) as process:
        assert becomes(lambda: list((copy / "checkpoints").rglob("*.pt")))
        rank_processes(copy)[rank].kill()
        errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 128 + signal.SIGKILL
    (line,) = [line for line in errors.splitlines() if "error" in line.lower()]
    assert line.startswith(f"pretrain: error: rank {rank} of 2 was ended by SIGKILL")
    assert "Traceback" not in errors
    assert becomes(lambda: not rank_processes(copy))
    assert not (copy / "models").exists()
    with subprocess.Popen(
        command, cwd=copy, env=environment(copy), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert any("pretrain: resuming after epoch" in line for line in process.stdout)
        process.kill()  # nobody is left to end the ranks: they must see to it themselves
    assert becomes(lambda: not rank_processes(copy))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 1)])
def test_stopped_stage_takes_its_ranks_along(copy, number, status):
    set_params(copy, {".pretrain.num_epochs": ENDLESS})
    assert stage(copy, "configure").returncode == 0
    command = [sys.executable, "-m", "stages.pretrain"]
    with subprocess.Popen(command, cwd=copy, env=environment(copy), stderr=subprocess.PIPE, text=True) as process:
        assert becomes(lambda: list((copy / "checkpoints").rglob("*.pt")))
        process.send_signal(number)
        errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == status
    assert "Traceback" not in errors
    assert ("pretrain: interrupted; run `dvc repro` again to resume" in errors) is (number == signal.SIGINT)
    assert becomes(lambda: not rank_processes(copy))


def test_error_of_all_ranks_is_one_line(copy):
    for image in (copy / "data/voc/JPEGImages").iterdir():
        image.write_bytes(b"no picture")
    result = pretrained(copy)
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert (result.returncode, len(lines)) == (1, 1), result.stderr
    assert "Traceback" not in result.stderr


def test_error_of_all_ranks_is_said_once_even_if_the_first_is_slow_to_end(tmp_path):
    path = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); "
    failing = tmp_path / "failing.py"
    failing.write_text(
        path + "import atexit, os, time; from stages.launch import fail; "
        "os.environ['RANK'] == '0' and atexit.register(time.sleep, 3); fail('train: error: no picture')"
    )
    command = [sys.executable, str(failing)]
    launching = f"from stages.launch import run_on_ranks; sys.exit(run_on_ranks('train', {command!r}, 2))"
    result = python(REPOSITORY, "-c", path + launching)
    assert (result.returncode, result.stderr.strip()) == (1, "train: error: no picture")


def test_several_machines_are_for_torchrun_to_start(copy):
    set_params(copy, {".runtime.num_nodes": 2})
    one_line(stage(copy, "pretrain"), "runtime.num_nodes: 2 machines are asked for", "torchrun --nnodes 2 --nproc-per")


def test_two_machines_train_together(copy):
    """Two launches of torchrun, as on two machines with a shared disk."""
    set_params(copy, {".runtime.devices": 1, ".runtime.num_nodes": 2})
    assert stage(copy, "configure").returncode == 0
    port = free_port()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend",
        "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1", "-m", "stages.pretrain",
    ]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(command, cwd=copy, env=environment(copy), **pipes) for _ in range(2)]
    try:
        said = [node.communicate(timeout=PATIENCE)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    assert (copy / "models/pretrain.safetensors").exists()
    assert sum(text.count("MLflow: run pretrain-seed0") for text in said) == 1


def test_ranks_must_be_as_many_as_the_parameters_say(copy):
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "stages.pretrain"]
    result = python(copy, *command)
    assert result.returncode != 0
    assert "2 devices on each of 1 nodes make 2 ranks, but 1 were started" in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({".pretrain.batch_size": 9}, "pretrain.batch_size: 9 images cannot be shared out evenly over 2 devices"),
        ({".finetune.update_batch_norm": True}, "update_batch_norm must be false where several devices mine"),
        ({".runtime.strategy": "horovod"}, "runtime.strategy"),
    ],
)
def test_what_ranks_cannot_do_is_refused(tmp_path, refused, changes, message):
    folder = checkout(tmp_path / "repo", **{".runtime.devices": 2, **changes})
    assert message in refused(load_params, folder / "params.yaml")


@pytest.mark.parametrize(
    ("exit_codes", "status", "said"),
    [
        ({0: 75, 1: -9}, 137, "rank 1 of 2 was ended by SIGKILL"),
        ({0: -15, 1: -7}, 135, "rank 1 of 2 was ended by SIGBUS"),
        ({0: 75, 1: 75}, 75, "the 2 ranks lost one another"),
        ({0: -15, 1: 1}, 1, "pretrain: error: b.jpg: missing; add it (rank 1 of 2)"),
        ({0: 1, 1: 1}, 1, ""),  # rank 0 has said it
    ],
)
def test_first_cause_is_told_in_one_line(tmp_path, monkeypatch, capsys, exit_codes, status, said):
    """Which of several failures is the cause: not those that were stopped, nor those that lost another."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "stderr.log").write_text("some warning\npretrain: error: b.jpg: missing; add it\n")
    monkeypatch.setattr("tempfile.TemporaryDirectory", lambda **_: nullcontext(str(tmp_path)))
    failures = {rank: ProcessFailure(rank, 1, code, "") for rank, code in exit_codes.items()}

    def elastic_launch(*_):
        def launch(*_):
            raise ChildFailedError("pretrain", failures)

        return launch

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert run_on_ranks("pretrain", ["python"], 2) == status
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == bool(said)
