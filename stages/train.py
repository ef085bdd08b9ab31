"""One tracked, resumable training: what pretrain, classify and finetune have in common."""

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.base.errors import PipelineError
from pipeline.base.files import atomic_file, digest_file, write_csv, write_json
from pipeline.base.profile import Params
from pipeline.base.sections import Attention, Training
from pipeline.base.workspace import Workspace
from pipeline.data.guidance import Guidance, num_labelled_images
from pipeline.data.loading import Sample, SegmentationDataset, evaluation_loader, training_loader
from pipeline.data.manifest import ManifestRow, data_digest, read_manifest
from pipeline.data.voc import read_class_names
from pipeline.evaluation.passes import evaluate, validation_row
from pipeline.evaluation.snapshots import attention_maps, panel_samples
from pipeline.gain.attention import GuidedNetwork
from pipeline.gain.losses import LOSS_NAMES, Criterion
from pipeline.model.fcn8s import FCN8s
from pipeline.model.imported import initial_model
from pipeline.model.weights import load_weights, save_weights
from pipeline.report.charts import training_curves
from pipeline.report.panels import attention_panel, evolution_panel
from pipeline.tracking.throughput import peak_flops, training_flops, utilisation
from pipeline.tracking.tracker import WEIGHTS_TAG, Tracker, Tracking
from pipeline.training.checkpoints import CheckpointFile, fingerprint
from pipeline.training.devices import Device, choose_device, make_deterministic
from pipeline.training.loop import History, Row, Work, fit, freeze


@dataclass(frozen=True)
class Assembly:
    """Everything that one training needs, put together from params.yaml and the outputs of earlier stages."""

    name: str  # STAGE[/VARIANT]
    stage: str
    variant: str  # "" but for finetune
    options: Training
    used: Mapping[str, Any]  # the parameters that the result depends on
    device: Device
    fabric: Fabric
    model: FCN8s
    network: GuidedNetwork
    criterion: Criterion
    attention: Attention
    loader: DataLoader[Sample]
    val_set: SegmentationDataset
    rows: list[ManifestRow]
    class_names: tuple[str, ...]
    initial_weights: Path | None


def assemble(params: Params, space: Workspace, stage: str, variant: str = "") -> Assembly:
    """Model, data and criterion of `stage`: pretrain starts from scratch, the others from the stage before."""
    name = f"{stage}/{variant}" if variant else stage
    profile = params
    options, loss_weights, attention = _choices(params, stage, variant)
    runtime = profile.runtime
    device = choose_device(runtime.device, runtime.precision, runtime.devices)
    if runtime.compile and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise PipelineError(
            "params.yaml: runtime.compile: torch.compile needs a C++ compiler, and there is none; "
            "install one, or set compile: false"
        )
    make_deterministic(device)
    print(f"{name}: on {device.reason}", flush=True)
    rows, class_names = read_manifest(space.manifest), read_class_names(space.data)
    for doubt in profile.doubts:
        print(f"warning: {doubt}", file=sys.stderr, flush=True)
    if stage == "pretrain":
        source = profile.pretrain.weights.source
        initial_weights = next(iter(sorted(space.initial_weights.glob("*"))), None) if source != "random" else None
        if source != "random" and initial_weights is None:
            raise PipelineError(f"{space.initial_weights}: holds no weights; run `dvc repro download`")
        architecture = profile.model.model_dump()
        model = initial_model(source, initial_weights, architecture, class_names, seed=params.seed)
    else:
        initial_weights = space.models / f"{'pretrain' if stage == 'classify' else 'classify'}.safetensors"
        model, _ = load_weights(initial_weights)
    model.trunk.checkpoint_activations = profile.resources.activation_checkpointing
    freeze(model, options.frozen)
    fabric = Fabric(
        accelerator=device.accelerator,
        devices=runtime.devices,
        num_nodes=runtime.num_nodes,
        strategy=runtime.strategy if runtime.num_ranks > 1 else "auto",
        precision=device.precision,
    )
    fabric.launch()
    fabric.seed_everything(params.seed, verbose=False)
    criterion = Criterion(
        loss_weights,
        model.attention_grid,
        attention.guidance_resolution,
        attention.guidance_reduction,
        attention.guidance_sharpness,
        attention.guidance_distance,
    )
    train_set, val_set = _data_sets(params, space, options, attention, criterion, rows, class_names)
    weights = {name: loss_weights.get(name, 0.0) for name in LOSS_NAMES}
    used = {
        "seed": params.seed,
        "profile": params.profile,
        "runtime": profile.runtime.model_dump(),
        "model": profile.model.model_dump(),
        stage: {**options.model_dump(), "loss_weights": weights, "attention": attention.model_dump()},
    }
    return Assembly(
        name=name,
        stage=stage,
        variant=variant,
        options=options,
        used=used,
        device=device,
        fabric=fabric,
        model=model,
        network=guided_network(model, attention),
        criterion=criterion,
        attention=attention,
        loader=training_loader(
            train_set,
            batch_size=options.batch_size,
            seed=params.seed,
            num_workers=profile.resources.num_workers,
            accumulate_grad_batches=options.accumulate_grad_batches,
            rank=fabric.global_rank,
            num_ranks=fabric.world_size,
        ),
        val_set=val_set,
        rows=rows,
        class_names=class_names,
        initial_weights=initial_weights,
    )


def train(tracking: Tracking | None, params: Params, space: Workspace, stage: str, variant: str = "") -> None:
    """One training to models/NAME.safetensors and reports/NAME; with several ranks, the first one writes.

    Args:
        tracking: of the first rank; None on the others.
    """
    run = assemble(params, space, stage, variant)
    key = fingerprint(run.name, run.used, [space.manifest, *([run.initial_weights] if run.initial_weights else [])])
    checkpoint = CheckpointFile(space.checkpoints / run.name, key)
    val_loader = evaluation_loader(
        run.val_set,
        batch_size=params.evaluate.batch_size,
        num_workers=0,
        rank=run.fabric.global_rank,
        num_ranks=run.fabric.world_size,
    )
    guides = "classification" in run.criterion.needs
    samples = panel_samples(run.val_set, run.class_names, run.options.num_panel_images) if guides else []

    def validate(model: FCN8s) -> Row:
        return validation_row(evaluate(model, val_loader, run.fabric.device, attention=guides))

    def observe(model: FCN8s) -> Tensor:
        return attention_maps(model, samples)

    def learn(on_epoch: Callable[[int, History, Work], None]) -> History:
        return fit(
            run.fabric,
            run.network,
            run.loader,
            title=run.name,
            options=run.options,
            max_classes_per_image=run.attention.max_classes_per_image,
            criterion=run.criterion,
            ramp_fraction=run.attention.ramp_fraction,
            seed=params.seed,
            compiled=params.runtime.compile,
            validate=validate,
            observe=observe,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
        )

    crop = run.options.crop_size
    size = (crop, crop) if crop is not None else (run.val_set.rows[0].height, run.val_set.rows[0].width)
    flops = training_flops(run.network.to(run.fabric.device), run.criterion, size)
    if tracking is None:
        learn(lambda *_: None)
        return
    peak = peak_flops(run.fabric.device, run.device.precision)
    tags = {
        "stage": stage,
        "variant": variant,
        "profile": params.profile,
        "seed": str(params.seed),
        "device": run.device.reason,
        "peak": f"{peak.flops / 1e12:.3g} TFLOP/s ({peak.source})",
    }
    with Tracker(
        tracking,
        f"{run.name.replace('/', '-')}-{key}",
        run_name=f"{variant or stage}-seed{params.seed}",
        params=run.used,
        tags=tags,
        dataset={"name": params.download.source, "digest": data_digest(run.rows), "context": "training"},
    ) as tracker:

        def on_epoch(epoch: int, history: History, work: Work) -> None:
            values = {name: value for name, value in history.rows[-1].items() if name != "epoch"}
            if work.num_images:
                values |= utilisation(flops, peak, **work._asdict(), num_devices=run.fabric.world_size)
            tracker.log_metrics(values, step=epoch)
            if samples:
                panel = attention_panel(samples, history.snapshots[-1], run.class_names)
                tracker.log_image("attention", panel, step=epoch)

        history = learn(on_epoch)
        weights = space.models / f"{run.name}.safetensors"
        save_weights(weights, run.model, run.class_names)
        _report(space.reports / run.name, run, history, samples, tracker)
        tracker.set_tags({WEIGHTS_TAG: digest_file(weights)})
    checkpoint.remove()


def guided_network(model: FCN8s, attention: Attention) -> GuidedNetwork:
    """The network as params.yaml wants it guided."""
    names = {"mask_threshold", "mask_slope", "masked_stride", "second_order", "trunk_gradient", "masked_gradient"}
    return GuidedNetwork(model, **attention.model_dump(include=names))


def _choices(params: Params, stage: str, variant: str) -> tuple[Training, dict[str, float], Attention]:
    if stage == "finetune":
        weights = {str(name): weight for name, weight in params.variants[variant].loss_weights.items()}
        return params.finetune, weights, params.attention_of(variant)
    if stage == "classify":
        return params.classify, {"classification": 1.0}, params.attention
    return params.pretrain, {"segmentation": 1.0}, params.attention


def _data_sets(
    params: Params,
    space: Workspace,
    options: Training,
    attention: Attention,
    criterion: Criterion,
    rows: list[ManifestRow],
    class_names: tuple[str, ...],
) -> tuple[SegmentationDataset, SegmentationDataset]:
    train_rows, val_rows = ([row for row in rows if row.split == split] for split in ("train", "val"))
    sizes = {(row.height, row.width) for row in train_rows}
    if options.crop_size is None and len(sizes) > 1 and options.batch_size > 1:
        raise PipelineError(
            f"training images have {len(sizes)} sizes, and a batch one; set crop_size (pixels) of this stage in "
            "params.yaml, or batch_size: 1"
        )
    guidance = None
    if "external_supervision" in criterion.needs:
        labels = attention.pixel_labels
        num_labelled = num_labelled_images(train_rows, count=labels.count, fraction=labels.fraction)
        guidance = Guidance(
            space.data,
            train_rows,
            class_names,
            source=attention.guidance,
            num_labelled=num_labelled,
            seed=params.seed,
        )
        print(f"{params.profile}: {num_labelled} of {len(train_rows)} images guide attention", flush=True)
    cache = params.resources.cache_images
    train_set = SegmentationDataset(
        space.data,
        train_rows,
        num_foreground_classes=len(class_names),
        horizontal_flip=options.horizontal_flip,
        crop_size=options.crop_size,
        scale=options.scale,
        seed=params.seed,
        cache_images=cache,
        guidance=guidance,
        raw=True,
    )
    val_set = SegmentationDataset(
        space.data, val_rows, num_foreground_classes=len(class_names), seed=params.seed, cache_images=cache
    )
    return train_set, val_set


def _report(folder: Path, run: Assembly, history: History, samples: list[Sample], tracker: Tracker) -> None:
    selected = history.rows[history.selected_epoch - 1]
    write_csv(folder / "curves.csv", history.rows)
    write_json(
        folder / "summary.json", {"selected_epoch": history.selected_epoch, **selected, "frozen": history.frozen}
    )
    tracker.log_image("loss_curves", training_curves(history.rows, run.name), step=len(history.rows))
    if samples:
        with atomic_file(folder / "attention.safetensors") as partial:
            save_file({"attention": torch.stack(history.snapshots)}, partial)
        strip = evolution_panel(samples, torch.stack(history.snapshots), run.class_names)
        tracker.log_image("attention_evolution", strip, step=len(history.rows))
    for name in ("curves.csv", "summary.json"):
        tracker.log_artifact(folder / name)
