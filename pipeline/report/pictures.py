"""The pictures of a comparison: all models side by side, and each on its own."""

from PIL import Image
from safetensors.torch import load_file

from pipeline.base.files import read_numbers
from pipeline.base.workspace import PRETRAINED, Workspace
from pipeline.evaluation.snapshots import panel_samples
from pipeline.report.charts import class_bars, confusion_chart
from pipeline.report.comparison import Comparison
from pipeline.report.curves import compared_curves, training_curves
from pipeline.report.held_out import read_set
from pipeline.report.panels import comparison_panel, evolution_panel

Pictures = dict[str, Image.Image]  # by name


def draw_comparison(comparison: Comparison, space: Workspace, scale: int) -> Pictures:
    """Attention of all models on the same images, their IoU by class and their training curves.

    Args:
        scale: screen pixels per image pixel in the panels.
    """
    ious = {
        name: {str(row["class"]): float(str(row["iou"])) for row in scores.class_rows}
        for name, scores in comparison.scores.items()
    }
    curves = {name: _curves(space, name) for name in comparison.models if name != PRETRAINED}
    return {
        "comparison": comparison_panel(comparison.models, comparison.samples, comparison.class_names, scale),
        "class_iou": class_bars(ious, "Segmentation IoU by class"),
        "compared_curves": compared_curves(curves),
    }


def draw_model(comparison: Comparison, space: Workspace, name: str, scale: int) -> Pictures:
    """One model beside the pretrained one, its training curves, its confusions and how its attention moved."""
    models = {key: comparison.models[key] for key in dict.fromkeys((PRETRAINED, name))}
    classes = ("background", *comparison.class_names)
    confusion = comparison.scores[name].confusion.numpy()
    return {
        "panels": comparison_panel(models, comparison.samples, comparison.class_names, scale),
        "loss_curves": training_curves(_curves(space, name), name),
        "confusion": confusion_chart(confusion, classes, f"{name}: pixels of the test split"),
        **_draw_evolution(comparison, space, name),
    }


def _draw_evolution(comparison: Comparison, space: Workspace, name: str) -> Pictures:
    path = space.training_report(name) / "attention.safetensors"
    if not path.exists():  # num_panel_images is 0
        return {}
    snapshots = load_file(path)["attention"]
    samples = panel_samples(read_set(space, "val"), comparison.class_names, snapshots.shape[1])
    layer = comparison.models[name].attention_layer
    return {"attention_evolution": evolution_panel(samples, snapshots, comparison.class_names, layer=layer)}


def _curves(space: Workspace, name: str) -> list[dict[str, float]]:
    return read_numbers(space.training_report(name) / "curves.csv")
