"""The names of all scores by group: what params.yaml may name, and what reports/evaluate/metrics.json holds.

A test compares the list with what the stage evaluate writes. What each score means stands in evaluation/metrics.py,
report/context_bias.py, report/counterfactual_scores.py and report/faithfulness.py.
"""

_BY_SIZE = tuple(
    f"{name}_{size}"
    for size in ("small", "medium", "large")  # objects
    for name in ("attention_iou", "mask_precision", "mask_recall", "energy_pointing_game", "pointing_game")
)

SCORES: dict[str, tuple[str, ...]] = {
    "segmentation": ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou"),
    "classification": ("class_accuracy", "exact_match", "macro_f1", "mean_average_precision"),
    "attention": (
        "attention_iou",
        "mask_precision",
        "mask_recall",
        "energy_pointing_game",
        "pointing_game",
        "pointing_game_centre",
        "coverage",
        "attention_iou_best",
        "attention_best_threshold",
        "dead_map_rate",
        *_BY_SIZE,
        "deletion_auc",
        "insertion_auc",
    ),
    "context_bias": ("object_without_context", "context_without_object", "overall", "worst_group"),
    "counterfactual": (
        "only_object",
        "mixed_same",
        "mixed_rand",
        "no_object_filled",
        "no_object_mean",
        "background_gap",
        "counterfactual_overall",
        "counterfactual_worst_group",
    ),
}
# Not scored on validation images, on which the challenger is chosen: they need other images, or more of a class than a
# small set has, or cost too much.
TEST_ONLY = (
    "mean_average_precision",
    *_BY_SIZE,
    "deletion_auc",
    "insertion_auc",
    *SCORES["context_bias"],
    *SCORES["counterfactual"],
)
# They describe a map or the data and are no aim: neither more nor less of them is better.
NO_AIM = ("pointing_game_centre", "coverage", "attention_best_threshold")
LOWER_IS_BETTER = ("dead_map_rate", "deletion_auc", "background_gap")


def score_names() -> list[str]:
    """Every score, in the order of the groups."""
    return [name for names in SCORES.values() for name in names]
