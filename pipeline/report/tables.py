"""Markdown tables of scores; without torch, because the flows show them too."""

from collections.abc import Collection, Mapping, Sequence

from pipeline.base.workspace import PRETRAINED

Scores = dict[str, dict[str, float]]  # group to name to value, as in metrics.json
CONTROL = "control"

COLUMNS = {  # the scores to look at first: (group, score) to title
    ("segmentation", "mean_iou"): "mean IoU",
    ("classification", "class_accuracy"): "class acc.",
    ("classification", "macro_f1"): "macro F1",
    ("classification", "mean_average_precision"): "mAP",
    ("attention", "attention_iou"): "attention IoU",
    ("attention", "energy_pointing_game"): "energy PG",
    ("attention", "pointing_game"): "pointing game",
    ("context_bias", "object_without_context"): "object w/o context",
    ("context_bias", "context_without_object"): "context w/o object",
    ("context_bias", "overall"): "overall",
    ("context_bias", "worst_group"): "worst group",
    ("counterfactual", "background_gap"): "background gap",
    ("counterfactual", "counterfactual_worst_group"): "worst cut-out group",
}

HEADLINES = {score: title for (_, score), title in COLUMNS.items()}


def reference_model(names: Collection[str]) -> str:
    """The model that the others are compared with: CONTROL, or the pretrained network where there is none."""
    return CONTROL if CONTROL in names else PRETRAINED


def best_guided(validation: Mapping[str, Mapping[str, float]]) -> str:
    """The variant whose attention IoU on validation images is highest; the reference where there is no other.

    Args:
        validation: model to score to value, as in validation.json.
    """
    reference = reference_model(validation)
    guided = [name for name in validation if name not in (PRETRAINED, reference)]
    return max(guided, key=lambda name: validation[name].get("attention_iou", 0.0), default=reference)


def flat_scores(groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The scores of a model without their groups: score to value."""
    return {name: value for group in groups.values() for name, value in group.items()}


def tracked_metrics(groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The metrics that a run has in MLflow: `test/NAME` for every score, and those to look at first under their titles,
    in percent with one decimal, as narrow columns take them. Titles with a slash would be groups of charts there.

    Args:
        groups: group to score to fraction.
    """
    scores = flat_scores(groups)
    titles = {score: title for score, title in HEADLINES.items() if score in scores and "/" not in title}
    shown = {title: round(100 * scores[score], 1) for score, title in titles.items()}
    return {f"test/{score}": value for score, value in scores.items()} | shown


def results_table(metrics: Mapping[str, Scores]) -> str:
    """Markdown table of the scores to look at first, one row per model, in percent; below it, where there is another
    model beside PRETRAINED or CONTROL, a table of the differences to both.

    Scores that a model lacks, such as context bias on data without drawn counterfactual images, are left out.
    """
    shown = {
        (group, name): title
        for (group, name), title in COLUMNS.items()
        if all(name in groups.get(group, {}) for groups in metrics.values())
    }
    values = {model: [100 * groups[group][name] for group, name in shown] for model, groups in metrics.items()}
    titles = list(shown.values())
    table = markdown_table("model", titles, {model: [f"{value:.1f}" for value in row] for model, row in values.items()})
    differences = difference_table(values, titles)
    return f"{table}\n\n{differences}" if differences else table


def difference_table(values: Mapping[str, Sequence[float]], titles: Sequence[str]) -> str:
    """Markdown: how far each model lies from PRETRAINED and from CONTROL, in points, as `+1.0 / -0.2`.

    Args:
        values: of each model in percent, one per title.

    Returns:
        Nothing without a model to compare with, or to be compared.
    """
    references = [name for name in (PRETRAINED, CONTROL) if name in values]
    compared = [model for model in values if references and model != references[0]]
    rows = {model: [_cell(model, column, values, references) for column in range(len(titles))] for model in compared}
    return markdown_table(f"minus {' / '.join(references)}", titles, rows) if rows else ""


def markdown_table(corner: str, titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A row of cells per name, below a header of `corner` and the titles."""
    lines = [f"| {corner} | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def _cell(model: str, column: int, values: Mapping[str, Sequence[float]], references: Sequence[str]) -> str:
    differences = {name: values[model][column] - values[name][column] for name in references}
    return " / ".join("0" if name == model else f"{points:+.1f}" for name, points in differences.items())
