"""The models side by side: scores, tables and panels, and their way into the models' MLflow runs."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader

from pipeline.config import Params
from pipeline.data.loading import Sample, SegmentationDataset, evaluation_loader
from pipeline.data.manifest import data_digest, read_manifest
from pipeline.data.voc import COUNTERFACTUAL_SPLITS, read_class_names
from pipeline.devices import choose_device, make_deterministic
from pipeline.evaluation import Scores, results_table, score_model
from pipeline.files import digest_file, write_csv, write_json, write_text
from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import load_weights
from pipeline.panels import comparison_panel, panel_samples
from pipeline.progress import progress_bar
from pipeline.tracking import Tracker, Tracking
from stages import DATA, MANIFEST, MODELS, REPORTS

FOLDER = REPORTS / "evaluate"


def score(tracking: Tracking, params: Params) -> None:
    """models/ to reports/evaluate: metrics.json, tables, panels and report.md."""
    options, attention = params.profile.evaluate, params.profile.finetune.attention
    device = choose_device(params.profile.runtime.device, params.profile.runtime.precision)
    make_deterministic(device)
    print(f"evaluate: on {device.reason}", flush=True)
    class_names, sets = read_class_names(DATA), _data_sets()
    batches = {name: _batches(dataset, options.batch_size) for name, dataset in sets.items()}
    grounds = [row.contexts for row in sets["context_without_object"].rows]
    context_labels = torch.tensor([[float(name in ground) for name in class_names] for ground in grounds])
    weights = model_files(list(params.profile.finetune.variants))
    models: dict[str, FCN8s] = {}
    metrics: dict[str, Scores] = {}
    per_class: list[dict[str, object]] = []
    with progress_bar("evaluate: models scored", len(weights)) as advance:
        for name, path in weights.items():
            models[name] = load_weights(path)[0].to(device.torch_device).eval()
            metrics[name], rows = score_model(
                models[name],
                batches["test"],
                {split: batches[split] for split in COUNTERFACTUAL_SPLITS},
                context_labels,
                device.torch_device,
                class_names,
                attention_threshold=options.attention_threshold,
                mask_threshold=attention.mask_threshold,
                mask_slope=attention.mask_slope,
            )
            per_class += [{"model": name, **row} for row in rows]
            advance()
    _write_tables(metrics, per_class)
    samples = panel_samples(sets["test"], options.num_panels)
    (FOLDER / "panels").mkdir(parents=True, exist_ok=True)
    comparison_panel(models, samples, class_names, options.panel_scale).save(FOLDER / "panels" / "comparison.png")
    digest = data_digest(row for dataset in sets.values() for row in dataset.rows)
    for name, path in weights.items():
        pair = {key: models[key] for key in dict.fromkeys(("pretrained", name))}
        picture = comparison_panel(pair, samples, class_names, options.panel_scale)
        picture.save(FOLDER / "panels" / f"{name}.png")
        sha256 = digest_file(path)
        run_name = f"{name}-seed{params.seed}"
        with Tracker(tracking, f"evaluate-{sha256[:16]}", run_name=run_name, weights_sha256=sha256) as tracker:
            values = {f"test/{key}": value for group in metrics[name].values() for key, value in group.items()}
            tracker.log_metrics(values, step=0)
            tracker.log_image("panels", picture, step=0)
            tracker.log_artifact(FOLDER / "tables" / "per_class.csv", "evaluate")
            tracker.set_tags({"test_data_digest": digest})
    print(results_table(metrics), flush=True)


def model_files(variants: list[str]) -> dict[str, Path]:
    """Every model to compare: the head-only one as "pretrained", then the variants."""
    finetuned = {name: MODELS / "finetune" / f"{name}.safetensors" for name in variants}
    return {"pretrained": MODELS / "classify.safetensors", **finetuned}


def _data_sets() -> dict[str, SegmentationDataset]:
    rows, num_classes = read_manifest(MANIFEST), len(read_class_names(DATA))
    return {
        split: SegmentationDataset(
            DATA, [row for row in rows if row.split == split], num_foreground_classes=num_classes, cache_images=True
        )
        for split in ("test", *COUNTERFACTUAL_SPLITS)
    }


def _batches(dataset: SegmentationDataset, batch_size: int) -> DataLoader[Sample]:
    return evaluation_loader(dataset, batch_size=batch_size, num_workers=0)


def _write_tables(metrics: dict[str, Scores], per_class: list[dict[str, object]]) -> None:
    write_json(FOLDER / "metrics.json", metrics)
    write_csv(FOLDER / "tables" / "per_class.csv", per_class)
    flat = {name: {k: v for group in groups.values() for k, v in group.items()} for name, groups in metrics.items()}
    write_csv(FOLDER / "tables" / "summary.csv", [{"model": name, **values} for name, values in flat.items()])
    write_text(FOLDER / "report.md", f"# Results\n\n{results_table(metrics)}\n\n![panels](panels/comparison.png)\n")
