"""The training loop, the same for FCN8s, its classifier and GAIN; they differ in loss weights and frozen parts.

Nothing in a step waits for the device: labels become pairs before they are copied, and what a step says of itself stays
on the device until somebody looks, once a second and at the end of an epoch.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from pipeline.base.errors import PipelineError
from pipeline.base.ranks import rank_mean
from pipeline.base.sections import Training
from pipeline.data.loading import Sample, finished, start_epoch
from pipeline.gain.attention import GuidedNetwork, GuidedOutput, Pairs, class_pairs
from pipeline.gain.losses import Criterion
from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import state_digest
from pipeline.tracking.progress import TrainingProgress, warn_of_losses_that_do_not_fall
from pipeline.training.checkpoints import CheckpointFile

Row = dict[str, float]  # one epoch of the record: epoch, loss/..., train/..., val/...
SELECTION_METRIC = "val/mean_iou"
LOOK_SECONDS = 1.0  # between looks at the losses, each of which waits for the device


@dataclass
class History:
    """The record of a run: one row per epoch, and the proof that frozen parts stood still."""

    rows: list[Row] = field(default_factory=list)
    snapshots: list[Tensor] = field(default_factory=list)  # what `observe` saw, before training and after each epoch
    selected_epoch: int = 0
    frozen: dict[str, dict[str, str]] = field(default_factory=dict)


class Work(NamedTuple):
    """What the training steps of an epoch, on all ranks together, have got done; validation is not counted."""

    num_images: int
    num_pairs: int  # whose attention was guided
    seconds: float


def fit(
    fabric: Fabric,
    network: GuidedNetwork,
    loader: DataLoader[Sample],
    *,
    title: str,
    options: Training,
    max_classes_per_image: int,
    criterion: Criterion,
    ramp_fraction: float,
    seed: int,
    compiled: bool,
    validate: Callable[[FCN8s], Row],
    observe: Callable[[FCN8s], Tensor],
    on_epoch: Callable[[int, History, Work], None],
    checkpoint: CheckpointFile,
) -> History:
    """Train `network` in place, resuming from `checkpoint` if there is one; it is removed by the caller on success.

    Every rank calls it; the first one writes checkpoints, reports progress and calls `on_epoch`.

    Args:
        loader: from `training_loader`.
        max_classes_per_image: cap on the pairs of one image, see `class_pairs`.
        ramp_fraction: share of the steps over which attention losses rise to their weight.
        seed: with the epoch and the rank, decides dropout and the choice of pairs.
        compiled: let torch.compile translate the training step, which takes minutes and pays in long trainings.
        validate: scores the network after an epoch.
        observe: what to keep of the network before training and after every epoch, such as attention maps.
        on_epoch: called with the number of finished epochs, the record so far and the work of the epoch.

    Raises:
        PipelineError: a loss is not finite, or a frozen part has changed.
    """
    model = network.model
    model.to(memory_format=torch.channels_last)
    freeze(model, options.frozen)
    frozen = {part: state_digest(model.get_submodule(part)) for part in options.frozen}
    steps = len(loader) // options.accumulate_grad_batches
    # Where gradients are scaled for float16, they are unscaled before they are clipped, which fused steps do not let.
    optimizer = build_optimizer(model, options, fused=fabric.strategy.precision.precision != "16-mixed")
    scheduler = learning_rate_schedule(optimizer, options.num_epochs * steps, options.warmup_fraction)
    history, selected_state = History(), None
    guided, fabric_optimizer = fabric.setup(torch.compile(network) if compiled else network, optimizer)
    if (state := checkpoint.load()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        history = History(state["rows"], state["snapshots"], state["selected_epoch"])
        selected_state = state["selected_state"]
        print(f"{title}: resuming after epoch {len(history.rows)} from {checkpoint.path}", flush=True)
    else:
        history.snapshots.append(observe(model.eval()))
    first = len(history.rows)
    with TrainingProgress(title, num_epochs=options.num_epochs, steps_per_epoch=steps, first_epoch=first) as progress:
        for epoch in range(first, options.num_epochs):
            start_epoch(loader, epoch)
            seed_epoch(seed, epoch, fabric.global_rank)
            training_mode(model, frozen=options.frozen, update_batch_norm=options.update_batch_norm)
            means, work = _train_one_epoch(
                fabric, guided, loader, fabric_optimizer, scheduler,
                criterion=criterion, options=options, max_classes_per_image=max_classes_per_image,
                ramp_steps=ramp_fraction * options.num_epochs * steps, epoch=epoch, progress=progress,
            )  # fmt: skip
            model.eval()
            row = {"epoch": epoch + 1, **means, **validate(model)}
            history.rows.append(row)
            history.snapshots.append(observe(model))
            if options.select == "last" or row[SELECTION_METRIC] > _best(history.rows[:-1]):
                history.selected_epoch = epoch + 1
                selected_state = _copy(model.state_dict()) if options.select == "best" else None
            if not fabric.is_global_zero:
                continue
            checkpoint.save(
                {
                    "epoch": epoch + 1,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "rows": history.rows,
                    "snapshots": history.snapshots,
                    "selected_epoch": history.selected_epoch,
                    "selected_state": selected_state,
                }
            )
            progress.epoch(epoch + 1, row)
            warn_of_losses_that_do_not_fall(title, history.rows)
            on_epoch(epoch + 1, history, work)
    if not history.rows:  # no epoch asked for: imported weights as they are
        history.rows.append({"epoch": 0, **validate(model.eval())})
        if fabric.is_global_zero:
            on_epoch(0, history, Work(0, 0, 0.0))
    if selected_state is not None:
        model.load_state_dict(selected_state)
    history.frozen = _prove_frozen(model, frozen)
    return history


def _train_one_epoch(
    fabric: Fabric,
    guided: Any,
    loader: DataLoader[Sample],
    optimizer: Any,
    scheduler: LambdaLR,
    *,
    criterion: Criterion,
    options: Training,
    max_classes_per_image: int,
    ramp_steps: float,
    epoch: int,
    progress: TrainingProgress,
) -> tuple[Row, Work]:
    records = StepRecords(epoch + 1)
    begin = time.perf_counter()
    # Not through Fabric's loader: it would shuffle by the number of passes made, which a resumed process counts anew.
    for batches in in_steps(loader, options.accumulate_grad_batches):
        learning_rate = float(scheduler.get_last_lr()[0])
        ramp = min(1.0, (scheduler.last_epoch + 1) / max(ramp_steps, 1.0))
        record = add_gradients(fabric, guided, batches, criterion, ramp, max_classes_per_image)
        norm = fabric.clip_gradients(
            guided, optimizer, max_norm=options.max_gradient_norm, error_if_nonfinite=False
        ).detach()
        unclip = (norm / options.max_gradient_norm).clamp(min=1.0)
        record["train/gradient_norm"] = norm
        for group in optimizer.param_groups:
            record[f"train/gradient_norm/{group['name']}"] = gradient_norm(group["params"]) * unclip
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        records.add(record, learning_rate)
        progress.step(records.latest)
    means = records.means()
    num_batches = records.num_steps * options.accumulate_grad_batches * fabric.world_size
    dead, pairs = means.pop("dead", 0.0), means.pop("pairs", None)  # of a batch, on average
    if pairs is not None:
        means["train/dead_map_rate"] = dead / max(pairs, 1e-6)
    seconds = time.perf_counter() - begin
    work = Work(num_batches * (loader.batch_size or 1), round(num_batches * (pairs or 0.0)), seconds)
    return {**means, "train/learning_rate": learning_rate}, work


def add_gradients(
    fabric: Fabric,
    guided: Any,
    batches: Sequence[Sample],
    criterion: Criterion,
    ramp: float,
    max_classes_per_image: int,
) -> dict[str, Tensor]:
    """The forward and backward passes of one step.

    Args:
        guided: a `GuidedNetwork` that Fabric has set up.
        batches: of equal size; their gradients and losses are averaged.

    Returns:
        Unweighted losses as "loss/NAME" and their weighted sum as "loss/total", and, where attention is guided, how
        many pairs a batch had and how many of them a dead map, as "pairs" and "dead"; each () float32 on the device.
    """
    record: dict[str, Tensor] = {}
    for index, batch in enumerate(batches):
        pairs = class_pairs(batch.image_labels, max_classes_per_image)
        moved: tuple[Sample, Pairs] = fabric.to_device((batch, pairs))
        with fabric.no_backward_sync(guided, enabled=index < len(batches) - 1):
            output, losses = forward(guided, *moved, criterion)
            total = criterion.total(losses, ramp)
            fabric.backward(total / len(batches) if len(batches) > 1 else total)
        values = {f"loss/{name}": loss.detach().float() for name, loss in losses.items()}
        values["loss/total"] = total.detach()
        if output.alive is not None:
            values["pairs"] = torch.full_like(values["loss/total"], output.alive.numel())
            values["dead"] = (~output.alive).sum().float()
        for name, value in values.items():
            record[name] = record.get(name, 0.0) + value / len(batches)
    return record


def forward(guided: Any, batch: Sample, pairs: Pairs, criterion: Criterion) -> tuple[GuidedOutput, dict[str, Tensor]]:
    """One forward pass of a `GuidedNetwork` and the unweighted losses of its output, of a batch raw or finished."""
    batch = finished(batch)
    image = batch.image.contiguous(memory_format=torch.channels_last)
    output: GuidedOutput = guided(image, pairs, criterion.needs)
    return output, criterion(output, batch)


class StepRecords:
    """What the steps of one epoch say of themselves, kept on the device.

    Args:
        epoch: counted from 1.
    """

    def __init__(self, epoch: int) -> None:
        self.latest: dict[str, Tensor] = {}
        self._epoch = epoch
        self._learning_rates: list[float] = []
        self._waiting: list[Tensor] = []
        self._seen: list[Tensor] = []  # in the memory of the host
        self._looked = time.monotonic()

    @property
    def num_steps(self) -> int:
        """So far."""
        return len(self._learning_rates)

    def add(self, record: dict[str, Tensor], learning_rate: float) -> None:
        """One step: () float32 by name, the same names in every step.

        Raises:
            PipelineError: see `look`.
        """
        self.latest = record
        self._waiting.append(torch.stack(list(record.values())))
        self._learning_rates.append(learning_rate)
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self.look()
            self._looked = time.monotonic()

    def look(self) -> None:
        """Wait for the device and check what has come since the last look.

        Raises:
            PipelineError: the first loss that is no number, by epoch, step, learning rate and every loss.
        """
        if not self._waiting:
            return
        values = torch.stack(self._waiting).cpu()
        first, names = len(self._learning_rates) - len(values), list(self.latest)
        losses = [index for index, name in enumerate(names) if name.startswith("loss/")]
        for offset, row in enumerate(values):
            if not torch.isfinite(row[losses]).all():
                text = ", ".join(f"{names[i].removeprefix('loss/')} = {float(row[i]):.4g}" for i in losses)
                rate = self._learning_rates[first + offset]
                raise PipelineError(
                    f"loss is not finite at epoch {self._epoch}, step {first + offset + 1}: {text}; lower "
                    f"learning_rate (now {rate:.3g}) or max_gradient_norm in params.yaml"
                )
        self._seen.append(values)
        self._waiting.clear()

    def means(self) -> Row:
        """Over the steps of the epoch and all ranks.

        Raises:
            PipelineError: see `look`.
        """
        self.look()
        means = torch.cat(self._seen).double().mean(dim=0)
        device = next(iter(self.latest.values())).device
        return dict(zip(self.latest, rank_mean(means.float().to(device)).tolist(), strict=True))


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Fix what an epoch draws at random on this rank, so that a resumed training draws it again."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0]))


def in_steps(loader: Iterable[Sample], num_batches: int) -> Iterator[list[Sample]]:
    """The batches of a loader, `num_batches` to a step; a rest that fills no step is left out."""
    batches = iter(loader)
    while len(step := list(islice(batches, num_batches))) == num_batches:
        yield step


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """L2 norm of the gradients, () float32; parameters without a gradient count as 0."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def build_optimizer(model: FCN8s, options: Training, *, fused: bool) -> Optimizer:
    """One parameter group per part that learns, at learning_rate times the part's scale.

    Args:
        fused: update all parameters of a group in one kernel. AdamW only: torch's fused SGD fails once a parameter has
            its first gradient later than others, as the classifier may.
    """
    groups = []
    for part in FCN8s.PARTS:
        parameters = [p for p in model.get_submodule(part).parameters() if p.requires_grad]
        if parameters:
            scale = options.learning_rate_scales.get(part, 1.0)  # type: ignore[call-overload]
            groups.append({"params": parameters, "lr": options.learning_rate * scale, "name": part})
    if options.optimizer == "sgd":
        return SGD(groups, lr=options.learning_rate, momentum=0.9, weight_decay=options.weight_decay)
    return AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay, fused=fused)


def learning_rate_schedule(optimizer: Optimizer, num_steps: int, warmup_fraction: float) -> LambdaLR:
    """Linear warm-up over the first `warmup_fraction` of the steps, then half a cosine to 0."""
    warmup = max(1, round(warmup_fraction * num_steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))

    return LambdaLR(optimizer, factor)


def freeze(model: FCN8s, frozen: list[Any]) -> None:
    """Parameters of the named parts get no gradient; all others do, save the fixed bilinear upsampling."""
    for part in FCN8s.PARTS:
        for name, parameter in model.get_submodule(part).named_parameters():
            parameter.requires_grad_(part not in frozen and not name.startswith("upscore"))


def training_mode(model: FCN8s, *, frozen: list[Any], update_batch_norm: bool) -> None:
    """Training mode, except in frozen parts and, on request, in batch normalisation."""
    model.train()
    for part in frozen:
        model.get_submodule(part).eval()
    if not update_batch_norm:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()


def _prove_frozen(model: FCN8s, before: Mapping[Any, str]) -> dict[str, dict[str, str]]:
    proof = {}
    for part, digest in before.items():
        after = state_digest(model.get_submodule(part))
        if after != digest:
            raise PipelineError(f"{part} is frozen but has changed during training ({digest[:12]} to {after[:12]})")
        proof[part] = {"sha256_before": digest, "sha256_after": after}
    return proof


def _best(rows: list[Row]) -> float:
    return max((row[SELECTION_METRIC] for row in rows), default=-math.inf)


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
