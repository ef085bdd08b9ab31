"""Two processes that promote at the same time."""

import subprocess
import sys
from pathlib import Path

from checkouts import PATIENCE, environment

PROMOTE = """
import os, sys, time
from pathlib import Path
from pipeline.base.errors import PipelineError
from pipeline.base.sections import Promote
from pipeline.release import promotion

judge, me, folder = promotion.judge, sys.argv[1], Path("ready")

def judge_together(*arguments):
    verdicts = judge(*arguments)
    (folder / me).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.001)
    return verdicts

promotion.judge = judge_together
try:
    rules = Promote(at_least={"mean_iou": 0.5}, not_below={"mean_iou": 0.003}, better=["attention_iou", "worst_group"])
    print(promotion.promote(sys.argv[2], rules, reason=me).sentence)
except PipelineError as error:
    print("refused:", error)
"""


def promote_in_two_processes(folder: Path, registered_model_name: str, uri: str) -> list[str]:
    """What two say that promote at the same time, neither before both have judged; the winner first."""
    (folder / "ready").mkdir()
    repository = Path(__file__).parents[1]
    env = environment(folder) | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(repository)}
    command = [sys.executable, "-c", PROMOTE]
    both = [
        subprocess.Popen([*command, me, registered_model_name], cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
        for me in ("first", "second")
    ]
    try:
        return sorted((process.communicate(timeout=PATIENCE)[0] for process in both), reverse=True)
    finally:
        for process in both:
            process.kill()
