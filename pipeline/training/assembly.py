"""A training put together from params.yaml and from what earlier stages wrote."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.base.attention import Attention
from pipeline.base.errors import PipelineError
from pipeline.base.fabric import Fabric
from pipeline.base.profile import Params
from pipeline.base.sections import Training
from pipeline.base.workspace import PRETRAINED, Workspace
from pipeline.data.guidance import Guidance, num_labelled_images
from pipeline.data.loaders import training_loader
from pipeline.data.manifest import ManifestRow, read_manifest
from pipeline.data.samples import SegmentationDataset
from pipeline.data.voc import read_class_names
from pipeline.gain.losses import LOSS_NAMES, Criterion
from pipeline.gain.network import GuidedNetwork
from pipeline.model.fcn8s import FCN8s
from pipeline.model.imported import initial_model
from pipeline.model.weights import load_weights
from pipeline.training.checkpoints import fingerprint
from pipeline.training.devices import Device, choose_device, make_deterministic
from pipeline.training.optimization import freeze
from pipeline.training.task import Task


class Choices(NamedTuple):
    """What params.yaml says of one training."""

    options: Training
    loss_weights: dict[str, float]  # by LOSS_NAMES; losses that are not named weigh 0
    attention: Attention


@dataclass(frozen=True)
class Assembly:
    """A task, and what is needed around it to validate, resume and report it."""

    task: Task
    device: Device
    val_set: SegmentationDataset
    rows: list[ManifestRow]
    class_names: tuple[str, ...]
    used: Mapping[str, Any]  # the parameters that the result depends on
    inputs: list[Path]  # the files that it depends on

    @property
    def key(self) -> str:
        """Equal only where the training would be the same, see `fingerprint`."""
        return fingerprint(self.task.name, self.used, self.inputs)


def assemble(params: Params, space: Workspace, stage: str, variant: str = "") -> Assembly:
    """Model, data and criterion of `stage`: pretrain starts from initial weights, the others from the stage before.

    Raises:
        PipelineError: an input is missing or damaged, or the machine lacks what params.yaml asks for.
    """
    name = f"{stage}/{variant}" if variant else stage
    choices = choices_of(params, stage, variant)
    device = _device(params)
    print(f"{name}: on {device.reason}", flush=True)
    rows, class_names = read_manifest(space.manifest), read_class_names(space.data)
    model, initial_weights = _model(params, space, stage, class_names)
    model.trunk.checkpoint_activations = params.resources.activation_checkpointing
    model.scale = params.evaluate.scale
    freeze(model, choices.options)
    fabric = _fabric(params, device)
    criterion = Criterion(choices.loss_weights, model.attention_grid, choices.attention)
    train_set, val_set = _data_sets(params, space, choices, rows, class_names)
    task = Task(
        name=name,
        seed=params.seed,
        fabric=fabric,
        network=GuidedNetwork(model, choices.attention),
        criterion=criterion,
        loader=training_loader(
            train_set,
            batch_size=choices.options.batch_size,
            seed=params.seed,
            num_workers=params.resources.num_workers,
            accumulate_grad_batches=choices.options.accumulate_grad_batches,
            rank=fabric.global_rank,
            num_ranks=fabric.world_size,
        ),
        options=choices.options,
        attention=choices.attention,
        compiled=params.runtime.compile,
    )
    inputs = [space.manifest, *([initial_weights] if initial_weights is not None else [])]
    return Assembly(task, device, val_set, rows, class_names, _used(params, stage, choices), inputs)


def choices_of(params: Params, stage: str, variant: str) -> Choices:
    """The sections of a stage; pretrain and classify have one loss each."""
    if stage == "finetune":
        weights = {str(name): weight for name, weight in params.variants[variant].loss_weights.items()}
        return Choices(params.finetune, weights, params.attention_of(variant))
    if stage == "classify":
        return Choices(params.classify, {"classification": 1.0}, params.attention)
    return Choices(params.pretrain, {"segmentation": 1.0}, params.attention)


def _device(params: Params) -> Device:
    runtime = params.runtime
    device = choose_device(runtime.device, runtime.precision, runtime.devices)
    if runtime.compile and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise PipelineError(
            "params.yaml: runtime.compile: torch.compile needs a C++ compiler, and there is none; "
            "install one, or set compile: false"
        )
    make_deterministic(device)
    return device


def _model(params: Params, space: Workspace, stage: str, class_names: tuple[str, ...]) -> tuple[FCN8s, Path | None]:
    """The network that the stage begins with, and the file that it comes from."""
    if stage != "pretrain":
        path = space.models / "pretrain.safetensors" if stage == "classify" else space.weights(PRETRAINED)
        return load_weights(path)[0], path
    source = params.pretrain.weights.source
    found = next(iter(sorted(space.initial_weights.glob("*"))), None) if source != "random" else None
    if source != "random" and found is None:
        raise PipelineError(f"{space.initial_weights}: holds no weights; run `dvc repro download`")
    segments = params.pretrain.num_epochs == 0
    return initial_model(source, found, params.model, class_names, seed=params.seed, segments=segments), found


def _fabric(params: Params, device: Device) -> Fabric:
    runtime = params.runtime
    fabric = Fabric(
        accelerator=device.accelerator,
        devices=runtime.devices,
        num_nodes=runtime.num_nodes,
        strategy=runtime.strategy if runtime.num_ranks > 1 else "auto",
        precision=device.precision,
    )
    fabric.launch()
    fabric.seed_everything(params.seed, verbose=False)
    return fabric


def _data_sets(
    params: Params, space: Workspace, choices: Choices, rows: list[ManifestRow], class_names: tuple[str, ...]
) -> tuple[SegmentationDataset, SegmentationDataset]:
    options = choices.options
    train_rows, val_rows = ([row for row in rows if row.split == split] for split in ("train", "val"))
    sizes = {(row.height, row.width) for row in train_rows}
    if options.crop_size is None and len(sizes) > 1 and options.batch_size > 1:
        raise PipelineError(
            f"training images have {len(sizes)} sizes, and a batch one; set crop_size (pixels) of this stage in "
            "params.yaml, or batch_size: 1"
        )
    guided = choices.loss_weights.get("external_supervision", 0.0) > 0
    cache = params.resources.cache_images
    train_set = SegmentationDataset(
        space.data,
        train_rows,
        num_foreground_classes=len(class_names),
        augmentation=options,
        seed=params.seed,
        cache_images=cache,
        guidance=_guidance(params, space, choices.attention, train_rows, class_names) if guided else None,
        raw=True,
    )
    val_set = SegmentationDataset(
        space.data, val_rows, num_foreground_classes=len(class_names), seed=params.seed, cache_images=cache
    )
    return train_set, val_set


def _guidance(
    params: Params, space: Workspace, attention: Attention, rows: list[ManifestRow], class_names: tuple[str, ...]
) -> Guidance:
    labels = attention.pixel_labels
    num_labelled = num_labelled_images(rows, count=labels.count, fraction=labels.fraction)
    print(f"{params.profile}: {num_labelled} of {len(rows)} images guide attention", flush=True)
    return Guidance(
        space.data, rows, class_names, source=attention.guidance, num_labelled=num_labelled, seed=params.seed
    )


def _used(params: Params, stage: str, choices: Choices) -> dict[str, Any]:
    weights = {name: choices.loss_weights.get(name, 0.0) for name in LOSS_NAMES}
    return {
        "seed": params.seed,
        "profile": params.profile,
        "runtime": params.runtime.model_dump(),
        "model": params.model.model_dump(),
        stage: {
            **choices.options.model_dump(),
            "loss_weights": weights,
            "attention": choices.attention.model_dump(),
            "attention_threshold": params.evaluate.attention_threshold,
            "scale_of_evaluation": params.evaluate.scale,
        },
    }
