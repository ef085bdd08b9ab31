"""The models side by side: scores, tables and pictures, and their way into the models' MLflow runs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from pipeline.base.files import atomic_file, digest_file, read_numbers, write_csv, write_json, write_text
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.data.loaders import evaluation_loader
from pipeline.data.manifest import data_digest, read_manifest
from pipeline.data.samples import Sample, SegmentationDataset
from pipeline.data.voc import list_splits, read_class_names
from pipeline.evaluation.metrics import interval
from pipeline.evaluation.passes import ModelScores, estimates, results_table, score_model
from pipeline.evaluation.snapshots import panel_samples
from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import load_weights
from pipeline.report.charts import class_bars, compared_curves, confusion_chart, training_curves
from pipeline.report.panels import comparison_panel, evolution_panel
from pipeline.tracking.progress import progress_bar
from pipeline.tracking.tracker import Tracker, Tracking
from pipeline.training.devices import choose_device, make_deterministic

TRAINING_SPLITS = ("train", "val")


def score(tracking: Tracking, params: Params, space: Workspace) -> None:
    """models/ to reports/evaluate: metrics.json, tables, replicates, pictures and report.md."""
    options = params.evaluate
    device = choose_device(params.runtime.device, params.runtime.precision)
    make_deterministic(device)
    print(f"evaluate: on {device.reason}", flush=True)
    for doubt in params.doubts:
        print(f"warning: {doubt}", file=sys.stderr, flush=True)
    class_names = read_class_names(space.data)
    cache = params.resources.cache_images
    sets = _data_sets(space, [split for split in list_splits(space.data) if split not in TRAINING_SPLITS], cache)
    batches = {name: _batches(dataset, options.batch_size) for name, dataset in sets.items()}
    faithfulness = _batches(_first(sets["test"], options.num_deletion_images), options.batch_size)
    grounds = [row.contexts for row in sets["context_without_object"].rows] if "context_without_object" in sets else []
    context_labels = torch.tensor([[float(name in ground) for name in class_names] for ground in grounds])
    weights = model_files(space, list(params.variants))
    models: dict[str, FCN8s] = {}
    scores: dict[str, ModelScores] = {}
    with progress_bar("evaluate: models scored", len(weights)) as advance:
        for name, path in weights.items():
            models[name] = load_weights(path)[0].to(memory_format=torch.channels_last).to(device.torch_device).eval()
            scores[name] = score_model(
                models[name],
                batches["test"],
                {split: loader for split, loader in batches.items() if split != "test"},
                faithfulness,
                device.torch_device,
                class_names,
                context_labels=context_labels,
                attention_threshold=options.attention_threshold,
                mask_threshold=params.attention.mask_threshold,
                mask_slope=params.attention.mask_slope,
                num_replicates=options.num_replicates,
                seed=params.seed,
                deletion_steps=options.deletion_steps,
            )
            advance()
    folder = space.reports / "evaluate"
    _write_tables(folder, scores)
    samples = panel_samples(sets["test"], class_names, options.num_panels)
    pictures = {"comparison": comparison_panel(models, samples, class_names, options.panel_scale)}
    pictures |= _shared_pictures(space, scores)
    _save(folder / "pictures", pictures)
    digest = data_digest(row for dataset in sets.values() for row in dataset.rows)
    val_set = _data_sets(space, ["val"], False)["val"]
    for name, path in weights.items():
        pair = {key: models[key] for key in dict.fromkeys(("pretrained", name))}
        of_model = {"panels": comparison_panel(pair, samples, class_names, options.panel_scale)}
        of_model |= _model_pictures(space, name, scores[name], class_names, val_set)
        _save(folder / "pictures" / name, of_model)
        sha256 = digest_file(path)
        run_name = f"{name}-seed{params.seed}"
        beside = [key for key in scores if key in (name, "control")]
        with Tracker(tracking, f"evaluate-{sha256[:16]}", run_name=run_name, weights_sha256=sha256) as tracker:
            groups = estimates(scores[name].replicates)
            tracker.log_metrics({f"test/{k}": v for group in groups.values() for k, v in group.items()}, step=0)
            for key, picture in {**of_model, **pictures}.items():
                tracker.log_image(key, picture, step=0)
            for table in ("per_class.csv", "intervals.csv"):
                tracker.log_artifact(folder / "tables" / table, "evaluate")
            tracker.set_tags({"test_data_digest": digest})
            tracker.describe(results_table({key: estimates(scores[key].replicates) for key in beside}))
    print(results_table({name: estimates(of_model.replicates) for name, of_model in scores.items()}), flush=True)


def model_files(space: Workspace, variants: list[str]) -> dict[str, Path]:
    """Every model to compare: the head-only one as "pretrained", then the variants."""
    finetuned = {name: space.models / "finetune" / f"{name}.safetensors" for name in variants}
    return {"pretrained": space.models / "classify.safetensors", **finetuned}


def _data_sets(space: Workspace, splits: Sequence[str], cache_images: bool) -> dict[str, SegmentationDataset]:
    rows, num_classes = read_manifest(space.manifest), len(read_class_names(space.data))
    return {
        split: SegmentationDataset(
            space.data,
            [row for row in rows if row.split == split],
            num_foreground_classes=num_classes,
            cache_images=cache_images,
        )
        for split in splits
    }


def _first(dataset: SegmentationDataset, count: int) -> SegmentationDataset:
    """The first `count` images of a data set, as one of their own."""
    return SegmentationDataset(
        dataset.root, dataset.rows[:count], num_foreground_classes=dataset.num_foreground_classes
    )


def _batches(dataset: SegmentationDataset, batch_size: int) -> DataLoader[Sample]:
    return evaluation_loader(dataset, batch_size=batch_size, num_workers=0)


def _write_tables(folder: Path, scores: Mapping[str, ModelScores]) -> None:
    metrics = {name: estimates(of_model.replicates) for name, of_model in scores.items()}
    write_json(folder / "metrics.json", metrics)
    per_class = [{"model": name, **row} for name, of_model in scores.items() for row in of_model.class_rows]
    write_csv(folder / "tables" / "per_class.csv", per_class)
    flat = {name: {k: v for group in groups.values() for k, v in group.items()} for name, groups in metrics.items()}
    write_csv(folder / "tables" / "summary.csv", [{"model": name, **values} for name, values in flat.items()])
    intervals = []
    for name, of_model in scores.items():
        flat_replicates = {k: v.contiguous() for group in of_model.replicates.values() for k, v in group.items()}
        for score_name, values in flat_replicates.items():
            low, high = interval(values)
            intervals.append(
                {"model": name, "score": score_name, "estimate": float(values[0]), "low_95": low, "high_95": high}
            )
        (folder / "replicates").mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / "replicates" / f"{name}.safetensors") as partial:
            save_file(flat_replicates, partial)
    write_csv(folder / "tables" / "intervals.csv", intervals)
    write_text(folder / "report.md", f"# Results\n\n{results_table(metrics)}\n\n![panels](pictures/comparison.png)\n")


def _shared_pictures(space: Workspace, scores: Mapping[str, ModelScores]) -> dict[str, Image.Image]:
    bars = {
        name: {str(row["class"]): float(str(row["iou"])) for row in of_model.class_rows}
        for name, of_model in scores.items()
    }
    curves = {name: _curves(space, name) for name in scores if name != "pretrained"}
    return {
        "class_iou": class_bars(bars, "Segmentation IoU by class"),
        "compared_curves": compared_curves(curves),
    }


def _model_pictures(
    space: Workspace,
    name: str,
    scores: ModelScores,
    class_names: tuple[str, ...],
    val_set: SegmentationDataset,
) -> dict[str, Image.Image]:
    names = ("background", *class_names)
    return {
        "loss_curves": training_curves(_curves(space, name), name),
        "confusion": confusion_chart(scores.confusion.numpy(), names, f"{name}: pixels of the test split"),
        **_evolution(space, name, class_names, val_set),
    }


def _evolution(
    space: Workspace, name: str, class_names: tuple[str, ...], val_set: SegmentationDataset
) -> dict[str, Image.Image]:
    path = _training_report(space, name) / "attention.safetensors"
    if not path.exists():  # num_panel_images is 0
        return {}
    snapshots = load_file(path)["attention"]
    samples = panel_samples(val_set, class_names, snapshots.shape[1])
    return {"attention_evolution": evolution_panel(samples, snapshots, class_names)}


def _training_report(space: Workspace, name: str) -> Path:
    return space.reports / ("classify" if name == "pretrained" else f"finetune/{name}")


def _curves(space: Workspace, name: str) -> list[dict[str, float]]:
    return read_numbers(_training_report(space, name) / "curves.csv")


def _save(folder: Path, pictures: Mapping[str, Image.Image]) -> None:
    for name, picture in pictures.items():
        with atomic_file(folder / f"{name}.png") as partial:
            picture.save(partial, "PNG")
