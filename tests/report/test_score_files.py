"""The reports of the stage evaluate."""

import torch

from pipeline.evaluation.passes import Evaluation
from pipeline.report.model_scores import ModelScores
from pipeline.report.score_files import write_scores


def test_doubts_stand_above_the_scores_and_without_any_nothing_is_added(tmp_path):
    replicates = {"segmentation": {"mean_iou": torch.tensor([0.5, 0.4, 0.6], dtype=torch.float64)}}
    rows: list[dict[str, object]] = [{"class": "cat", "iou": 0.5}]
    nothing = torch.zeros(0)
    test = Evaluation(nothing, nothing, nothing, {})
    scores = {"gain": ModelScores({"mean_iou": 0.4}, replicates, rows, torch.zeros(2, 2, dtype=torch.int64), test)}
    table = "| model | mean IoU |\n|---|---|\n| gain | 50.0 |\n\n![panels](pictures/comparison.png)\n"
    write_scores(tmp_path, scores)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == f"# Results\n\n{table}"
    write_scores(tmp_path, scores, ["evaluate.scale: 1 lies outside finetune.scale"])
    doubt = "**Note**: evaluate.scale: 1 lies outside finetune.scale.\n\n"
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == f"# Results\n\n{doubt}{table}"
