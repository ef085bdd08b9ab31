"""Several seeds of the same models put together: means, their spread over seeds and intervals over images."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.base.errors import PipelineError
from pipeline.base.profile import Params
from pipeline.report.bootstrap import interval
from pipeline.report.study_charts import Mean, ShareMean
from pipeline.report.tables import CONTROL, HEADLINES, difference_table, markdown_table

Seeds = dict[int, dict[str, dict[str, Tensor]]]  # seed to model to score to (1 + R,) replicates, the estimate first

NUM_CHARTS = 6
CHARTED = (
    "mean_iou",
    "macro_f1",
    "attention_iou",
    "energy_pointing_game",
    "pointing_game",
    "overall",
    "background_gap",
)


def read_seeds(folder: Path) -> Seeds:
    """The replicates of every model in seed*/reports/evaluate below `folder`.

    Raises:
        PipelineError: there is no such report.
    """
    seeds: Seeds = {}
    for reports in sorted(folder.glob("seed*/reports/evaluate")):
        seed = int(reports.parts[-3].removeprefix("seed"))
        models = json.loads((reports / "metrics.json").read_text(encoding="utf-8"))
        seeds[seed] = {name: load_file(reports / "replicates" / f"{name}.safetensors") for name in models}
    if not seeds:
        raise PipelineError(f"{folder}: no seed*/reports/evaluate; run `make study`")
    return seeds


def headlines(seeds: Seeds, candidates: Iterable[str] = HEADLINES) -> list[str]:
    """Those of the scores that every model of every seed has; which ones there are depends on the data."""
    return [score for score in candidates if all(score in of for models in seeds.values() for of in models.values())]


def charted_scores(seeds: Seeds) -> list[str]:
    """Those to draw: at most NUM_CHARTS of CHARTED, whose last one stands in on data without drawn images."""
    return headlines(seeds, CHARTED)[:NUM_CHARTS]


def per_seed_rows(seeds: Seeds) -> list[dict[str, object]]:
    """One row per model and seed with its `headlines`."""
    shown = headlines(seeds)
    return [
        {"model": name, "seed": seed, **{score: float(replicates[score][0]) for score in shown}}
        for seed, models in seeds.items()
        for name, replicates in models.items()
    ]


def study_rows(seeds: Seeds) -> list[dict[str, object]]:
    """One row per model and score that every seed has.

    mean: over seeds. std: sample standard deviation over seeds. low_95, high_95: bootstrap interval of the mean over
    images, the seeds held fixed. difference, difference_low_95, difference_high_95: the same for the model minus the
    control, resampled together. ratio: of the means; inf or NaN where the control's is 0.
    """
    first = next(iter(seeds.values()))
    rows: list[dict[str, object]] = []
    for model, scores in first.items():
        for score in headlines(seeds, scores):
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
    """Markdown: one row per model, mean and standard deviation over seeds of the scores to look at first, in percent.

    Below it the differences of the means, see `tables.difference_table`.
    """
    cells: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        mean, std = (100 * float(str(row[key])) for key in ("mean", "std"))
        cells.setdefault(str(row["model"]), {})[str(row["score"])] = (mean, std)
    shown = [score for score in HEADLINES if all(score in of for of in cells.values())]
    titles = [HEADLINES[score] for score in shown]
    texts = {model: ["{:.1f} ± {:.1f}".format(*of[score]) for score in shown] for model, of in cells.items()}
    means = {model: [of[score][0] for score in shown] for model, of in cells.items()}
    return f"{markdown_table('model', titles, texts)}\n\n{difference_table(means, titles)}".rstrip()


def study_means(rows: Sequence[Mapping[str, object]], scores: Sequence[str]) -> dict[str, dict[str, Mean]]:
    """Score to model to its mean over seeds with the interval, from `study_rows`."""
    means: dict[str, dict[str, Mean]] = {score: {} for score in scores}
    for row in rows:
        if row["score"] in scores:
            mean, low, high = (float(str(row[key])) for key in ("mean", "low_95", "high_95"))
            means[str(row["score"])][str(row["model"])] = Mean(mean, low, high)
    return means


def label_fractions(params: Params) -> dict[str, float]:
    """Share of the training images with pixel labels, of the guided variants that differ in nothing else."""
    fractions = {
        name: params.attention_of(name).pixel_labels.fraction
        for name, variant in params.variants.items()
        if variant.loss_weights.get("external_supervision") and set(variant.attention) <= {"pixel_labels"}
    }
    return {name: fraction for name, fraction in fractions.items() if fraction}


def label_counts(seeds: Seeds, fractions: Mapping[str, float], scores: Sequence[str]) -> dict[str, list[ShareMean]]:
    """Per score the mean over seeds, the lowest and the highest seed of the models of `label_fractions`."""
    points: dict[str, list[ShareMean]] = {}
    for score in scores:
        for model, fraction in fractions.items():
            values = [float(models[model][score][0]) for models in seeds.values()]
            mean = sum(values) / len(values)
            points.setdefault(score, []).append(ShareMean(fraction, mean, min(values), max(values)))
    return points
