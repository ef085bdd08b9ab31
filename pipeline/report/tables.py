"""Markdown tables of scores; without torch, because the flows show them too."""

from collections.abc import Mapping

Scores = dict[str, dict[str, float]]  # group to name to value, as in metrics.json

COLUMNS = {  # of the results table: (group, score) to title
    ("segmentation", "mean_iou"): "mean IoU",
    ("segmentation", "pixel_accuracy"): "pixel acc.",
    ("classification", "class_accuracy"): "class acc.",
    ("attention", "attention_iou"): "attention IoU",
    ("attention", "energy_pointing_game"): "energy PG",
    ("attention", "pointing_game"): "pointing game",
    ("context_bias", "object_without_context"): "object w/o context",
    ("context_bias", "context_without_object"): "context w/o object",
    ("context_bias", "overall"): "overall",
    ("context_bias", "worst_group"): "worst group",
}


def results_table(metrics: Mapping[str, Scores]) -> str:
    """Markdown table of the scores to look at first, one row per model, in percent.

    Groups that a model lacks, such as context bias on data without counterfactual images, are left out.
    """
    shown = {key: title for key, title in COLUMNS.items() if all(key[0] in groups for groups in metrics.values())}
    lines = ["| model | " + " | ".join(shown.values()) + " |", "|---" * (len(shown) + 1) + "|"]
    for model, groups in metrics.items():
        cells = " | ".join(f"{100 * groups[group][name]:.1f}" for group, name in shown)
        lines.append(f"| {model} | {cells} |")
    return "\n".join(lines)
