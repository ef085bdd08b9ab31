"""Several seeds of the same models put together: means, their spread over seeds and intervals over images."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.evaluation.metrics import interval

Seeds = dict[int, dict[str, dict[str, Tensor]]]  # seed to model to score to (1 + R,) replicates, the estimate first

CONTROL = "control"
HEADLINES = {
    "mean_iou": "mean IoU",
    "class_accuracy": "class acc.",
    "attention_iou": "attention IoU",
    "energy_pointing_game": "energy PG",
    "pointing_game": "pointing game",
    "object_without_context": "object w/o context",
    "context_without_object": "context w/o object",
    "overall": "overall",
    "worst_group": "worst group",
}


def study_rows(seeds: Seeds) -> list[dict[str, object]]:
    """One row per model and score.

    mean: over seeds. std: sample standard deviation over seeds. low_95, high_95: bootstrap interval of the mean over
    images, the seeds held fixed. difference, difference_low_95, difference_high_95: the same for the model minus the
    control, resampled together. ratio: of the means; inf or NaN where the control's is 0.
    """
    first = next(iter(seeds.values()))
    rows: list[dict[str, object]] = []
    for model, scores in first.items():
        for score in scores:
            values, control = (torch.stack([of[name][score] for of in seeds.values()]) for name in (model, CONTROL))
            mean, difference = values.mean(dim=0), (values - control).mean(dim=0)
            low, high = interval(mean)
            difference_low, difference_high = interval(difference)
            rows.append(
                {
                    "model": model,
                    "score": score,
                    "mean": float(mean[0]),
                    "std": float(values[:, 0].std()) if len(seeds) > 1 else 0.0,
                    "low_95": low,
                    "high_95": high,
                    "difference": float(difference[0]),
                    "difference_low_95": difference_low,
                    "difference_high_95": difference_high,
                    "ratio": float(mean[0] / control.mean(dim=0)[0]),
                }
            )
    return rows


def study_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Markdown: one row per model, mean and standard deviation over seeds of the headline scores, in percent."""
    cells = {(str(row["model"]), str(row["score"])): row for row in rows}
    models = list(dict.fromkeys(model for model, _ in cells))
    lines = ["| model | " + " | ".join(HEADLINES.values()) + " |", "|---" * (len(HEADLINES) + 1) + "|"]
    for model in models:
        values = [cells[model, score] for score in HEADLINES]
        texts = [f"{100 * float(str(v['mean'])):.1f} ± {100 * float(str(v['std'])):.1f}" for v in values]
        lines.append(f"| {model} | {' | '.join(texts)} |")
    return "\n".join(lines)


def label_counts(
    seeds: Seeds, fractions: Mapping[str, float], scores: Sequence[str]
) -> dict[str, list[tuple[float, float, float, float]]]:
    """Per score (fraction, mean, lowest, highest seed) of the models that differ in their share of pixel labels."""
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for score in scores:
        for model, fraction in fractions.items():
            values = [float(models[model][score][0]) for models in seeds.values()]
            points.setdefault(score, []).append((fraction, sum(values) / len(values), min(values), max(values)))
    return points
