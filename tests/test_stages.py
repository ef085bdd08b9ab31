"""How a stage fails, in one line with exit code 1 whatever a user can act on; what it imports before it begins."""

import errno
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkouts import REPOSITORY
from torch.utils.data import DataLoader, Dataset

from pipeline.base.errors import PipelineError
from pipeline.base.params import load_params
from pipeline.base.workspace import Workspace
from stages.ending import last_line
from stages.run import run_stage


class Broken(Dataset):
    """Its second image is missing."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 1:
            raise PipelineError("b.jpg: missing; add it")
        return index


def load_in_a_worker() -> None:
    list(DataLoader(Broken(), num_workers=1))


def raising(error: Exception):
    def stage(*_: object) -> None:
        raise error

    return stage


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        (raising(PipelineError("a: wrong; mend it")), "demo: error: a: wrong; mend it"),
        pytest.param(lambda *_: load_in_a_worker(), "demo: error: b.jpg: missing; add it", marks=pytest.mark.system),
        (raising(OSError(errno.ENOSPC, "full", "/x")), "demo: error: /x: the disk is full; free some space and rerun"),
        (raising(PermissionError(errno.EACCES, "Permission denied", "/x")), "demo: error: /x: Permission denied"),
        (raising(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore")), "demo: error: CUDA out of memory."),
        (lambda *_: torch.empty(10**15), "demo: error: [enforce fail at alloc_cpu.cpp"),
        (lambda *_: np.empty(10**15), "demo: error: Unable to allocate"),
        (raising(MemoryError()), "demo: error: out of memory; lower this stage's batch_size"),
    ],
)
def test_failure_is_one_line(monkeypatch, stage, line):
    monkeypatch.setattr(sys, "argv", ["demo"])
    with pytest.raises(SystemExit) as exit_:
        run_stage("demo", stage)
    assert str(exit_.value).startswith(line)
    assert "\n" not in str(exit_.value)


def test_failure_of_one_of_several_names_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo", "gain"])
    with pytest.raises(SystemExit, match="demo/gain: error: a: wrong"):
        run_stage("demo", raising(PipelineError("a: wrong")), argument="variant")


def test_full_disk_is_the_one_with_the_least_room(monkeypatch, tmp_path):
    room = {tmp_path: 5000, tmp_path / "data": 10, tmp_path / "models": 0}
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(sys, "argv", ["demo", "--folder", str(tmp_path)])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=room.get(folder, 9000)))
    with pytest.raises(SystemExit, match=f"demo: error: {tmp_path}/data: the disk is full"):
        run_stage("demo", raising(OSError(errno.ENOSPC, "full")), configures=True)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError("no number, no file"), KeyError("bug")])
def test_bug_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(sys, "argv", ["demo"])
    with pytest.raises(type(error)):
        run_stage("demo", raising(error))


HEAVY = {
    "torch", "torchvision", "lightning_fabric", "matplotlib", "pandas", "sklearn", "scipy", "mlflow", "dvc", "prefect",
}  # fmt: skip


@pytest.mark.system
@pytest.mark.parametrize(
    ("modules", "needed"),
    [
        ("stages.download", set()),
        ("stages.prepare", set()),
        ("stages.counterfactual", set()),
        ("stages.pretrain, stages.train", {"torch", "lightning_fabric"}),
        ("stages.evaluate", set()),
        ("pipeline.report.comparison, pipeline.report.pictures", {"torch"}),
        ("stages.register", set()),
        ("stages.summarise", {"torch"}),
    ],
)
def test_stage_imports_what_it_uses_at_once_and_nothing_else(modules, needed):
    """What is left out here is imported where it is used: pandas for a manifest, matplotlib for a chart."""
    code = f"import sys; import {modules}; print(*({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert set(found.stdout.split()) == needed


@pytest.mark.system
@pytest.mark.parametrize("name", ["download", "pretrain", "register"])
def test_python_without_the_packages_is_told_to_activate_the_environment(name):
    command = [sys.executable, "-S", "-m", f"stages.{name}"]  # -S: without site-packages
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    (line,) = found.stderr.splitlines()
    assert found.returncode == 1
    assert line.startswith(f"error: {sys.executable} has no torch, torchvision, ")
    assert "type: . .venv/bin/activate" in line


def files(folder, **contents):
    for name, content in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(content))


def test_stage_ends_with_what_it_wrote_its_score_its_time_and_where_to_look(tmp_path):
    params, space = load_params(profile="smoke"), Workspace(tmp_path)
    files(
        tmp_path,
        reports__finetune__gain__summary={"val/mean_iou": 0.5, "val/attention_iou": 0.123},
        reports__pretrain__summary={"val/mean_iou": 0.25},
        reports__evaluate__metrics={
            name: {"attention": {"attention_iou": value}}
            for name, value in {"pretrained": 0.9, "control": 0.1, "gain": 0.2, "gain_ext": 0.4}.items()
        },
        reports__evaluate__validation={
            name: {"attention_iou": value}
            for name, value in {"pretrained": 0.9, "control": 0.8, "gain": 0.3, "gain_ext": 0.2}.items()
        },
    )
    space.manifest.parent.mkdir(parents=True)
    space.manifest.write_text("image_id,split\na,train\nb,train\nc,test\n")
    lines = {
        (
            "finetune",
            "gain",
        ): f"finetune/gain: done in 12 s: {tmp_path}/models/finetune/gain.safetensors, mean IoU 50.0 %, "
        f"attention IoU 12.3 % on validation images; curves: {tmp_path}/reports/finetune/gain/curves.csv",
        (
            "pretrain",
            "",
        ): f"pretrain: done in 12 s: {tmp_path}/models/pretrain.safetensors, mean IoU 25.0 % on validation "
        f"images; curves: {tmp_path}/reports/pretrain/curves.csv",
        ("evaluate", ""): "evaluate: done in 12 s: attention IoU gain 20.0 %, control 10.0 %; open "
        f"{tmp_path}/reports/evaluate/index.html",
        ("prepare", ""): f"prepare: done in 12 s: {tmp_path}/data/manifest.csv, 2 train, 1 test; images by class: "
        f"{tmp_path}/reports/prepare/classes.csv",
    }
    for (name, variant), line in lines.items():
        assert last_line(name, params, space, variant, 12.3) == line
    for name in ("configure", "download", "counterfactual", "register", "summarise"):
        assert last_line(name, params, space, "", 0.4).startswith(f"{name}: done in 0 s: ")
