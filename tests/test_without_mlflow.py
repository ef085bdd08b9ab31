"""The stages on a machine without DVC, MLflow and Prefect, as a machine with a GPU may be."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkouts import PATIENCE, REPOSITORY

from benchmarks.gpu_check import NEEDED, stage_commands

pytestmark = pytest.mark.system
# Python runs it at its start: the packages cannot be found, as if they were not installed.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        hidden = name.partition(".")[0] in ("dvc", "mlflow", "prefect")
        return None if hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


@pytest.fixture
def run(tmp_path):
    """`python ARGUMENTS` in an empty folder with what the stages need."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT)
    for name in NEEDED:
        shutil.copy(REPOSITORY / name, tmp_path)
    path = os.pathsep.join([str(tmp_path / "without"), str(REPOSITORY)])

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    return call


def test_stages_run_and_say_once_that_nothing_is_tracked(run, tmp_path):
    assert "No module named 'mlflow'" in run("-c", "import mlflow").stderr
    commands = dict(stage_commands())
    for name in ("configure", "download", "prepare", "counterfactual", "pretrain", "classify", "finetune/gain_ext"):
        result = run("-m", *commands[name])
        assert result.returncode == 0, result.stdout + result.stderr
        trains = name.partition("/")[0] in ("pretrain", "classify", "finetune")
        assert result.stdout.count("MLflow is not installed, so tracking is off") == int(trains)
        assert "Traceback" not in result.stderr
    assert (tmp_path / "models" / "finetune" / "gain_ext.safetensors").exists()
    waiting = list(Path(tmp_path, ".tracking").glob("*/events.jsonl"))
    assert len(waiting) == 3
    assert all(json.loads(path.read_text().splitlines()[-1])["kind"] == "finish" for path in waiting)


def test_evaluation_can_be_imported_and_the_registry_refuses_in_a_line(run):
    assert run("-m", *dict(stage_commands())["configure"]).returncode == 0
    imported = run("-c", "import stages.evaluate, pipeline.report.comparison, pipeline.report.page.evaluation")
    assert imported.returncode == 0, imported.stderr
    refused = run("-m", "stages.register")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "register: error: MLflow is not installed, and the model registry is MLflow's; install it, and rerun\n"
    )
