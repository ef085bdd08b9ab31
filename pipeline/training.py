"""The training loop, the same for FCN8s, its classifier and GAIN; they differ in loss weights and frozen parts."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from pipeline.checkpoints import CheckpointFile
from pipeline.config import Training
from pipeline.data.loading import Sample, start_epoch
from pipeline.errors import PipelineError
from pipeline.gain.attention import GuidedNetwork, GuidedOutput
from pipeline.gain.losses import Criterion
from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import state_digest
from pipeline.progress import TrainingProgress, warn_of_losses_that_do_not_fall

Row = dict[str, float]  # one epoch of the record: epoch, loss/..., train/..., val/...
SELECTION_METRIC = "val/mean_iou"


@dataclass
class History:
    """The record of a run: one row per epoch, and the proof that frozen parts stood still."""

    rows: list[Row] = field(default_factory=list)
    snapshots: list[Tensor] = field(default_factory=list)  # what `observe` saw, before training and after each epoch
    selected_epoch: int = 0
    frozen: dict[str, dict[str, str]] = field(default_factory=dict)


def fit(
    fabric: Fabric,
    network: GuidedNetwork,
    loader: DataLoader[Sample],
    *,
    title: str,
    options: Training,
    criterion: Criterion,
    ramp_fraction: float,
    validate: Callable[[FCN8s], Row],
    observe: Callable[[FCN8s], Tensor],
    on_epoch: Callable[[int, History], None],
    checkpoint: CheckpointFile,
) -> History:
    """Train `network` in place, resuming from `checkpoint` if there is one; it is removed by the caller on success.

    Args:
        loader: from `training_loader`.
        ramp_fraction: share of the steps over which attention losses rise to their weight.
        validate: scores the network after an epoch; must leave the random state alone.
        observe: what to keep of the network before training and after every epoch, such as attention maps; as above.
        on_epoch: called with the number of finished epochs and the record so far.

    Raises:
        PipelineError: a loss is not finite, or a frozen part has changed.
    """
    model = network.model
    model.to(memory_format=torch.channels_last)
    freeze(model, options.frozen)
    frozen = {part: state_digest(model.get_submodule(part)) for part in options.frozen}
    optimizer = build_optimizer(model, options)
    scheduler = learning_rate_schedule(optimizer, options.num_epochs * len(loader), options.warmup_fraction)
    history, selected_state = History(), None
    guided, fabric_optimizer = fabric.setup(network, optimizer)
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
    with TrainingProgress(
        title, num_epochs=options.num_epochs, steps_per_epoch=len(loader), first_epoch=first
    ) as progress:
        for epoch in range(first, options.num_epochs):
            start_epoch(loader, epoch)
            training_mode(model, frozen=options.frozen, update_batch_norm=options.update_batch_norm)
            means = _train_one_epoch(
                fabric, guided, loader, fabric_optimizer, scheduler,
                criterion=criterion, max_gradient_norm=options.max_gradient_norm,
                ramp_steps=ramp_fraction * options.num_epochs * len(loader), epoch=epoch, progress=progress,
            )  # fmt: skip
            model.eval()
            row = {"epoch": epoch + 1, **means, **validate(model)}
            history.rows.append(row)
            history.snapshots.append(observe(model))
            if options.select == "last" or row[SELECTION_METRIC] > _best(history.rows[:-1]):
                history.selected_epoch = epoch + 1
                selected_state = _copy(model.state_dict()) if options.select == "best" else None
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
            on_epoch(epoch + 1, history)
    if not history.rows:  # no epoch asked for: imported weights as they are
        history.rows.append({"epoch": 0, **validate(model.eval())})
        on_epoch(0, history)
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
    max_gradient_norm: float,
    ramp_steps: float,
    epoch: int,
    progress: TrainingProgress,
) -> Row:
    sums: dict[str, Tensor] = {}
    # Not through Fabric's loader: it would shuffle by the number of passes made, which a resumed process counts anew.
    for step, batch in enumerate(map(fabric.to_device, loader)):
        learning_rate = float(scheduler.get_last_lr()[0])
        ramp = min(1.0, (scheduler.last_epoch + 1) / max(ramp_steps, 1.0))
        output, losses = forward(guided, batch, criterion)
        total = criterion.total(losses, ramp)
        check_finite(total, losses, epoch=epoch + 1, step=step + 1, learning_rate=learning_rate)
        fabric.backward(total)
        norm = fabric.clip_gradients(guided, optimizer, max_norm=max_gradient_norm, error_if_nonfinite=False)
        record = {f"loss/{name}": loss.detach() for name, loss in losses.items()} | {"loss/total": total.detach()}
        record["train/gradient_norm"] = norm.detach()
        unclip = (norm.detach() / max_gradient_norm).clamp(min=1.0)
        for group in optimizer.param_groups:
            record[f"train/gradient_norm/{group['name']}"] = gradient_norm(group["params"]) * unclip
        if output.alive is not None:
            record["train/dead_map_rate"] = 1.0 - output.alive.float().sum() / max(output.alive.numel(), 1)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        for name, value in record.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
        progress.step(losses)
    means = {name: float(value) / len(loader) for name, value in sums.items()}
    return {**means, "train/learning_rate": learning_rate}


def forward(guided: Any, batch: Sample, criterion: Criterion) -> tuple[GuidedOutput, dict[str, Tensor]]:
    """One forward pass of a `GuidedNetwork` and the unweighted losses of its output."""
    image = batch.image.contiguous(memory_format=torch.channels_last)
    output: GuidedOutput = guided(image, batch.image_labels, criterion.needs)
    return output, criterion(output, batch)


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """L2 norm of the gradients, () float32; parameters without a gradient count as 0."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def check_finite(total: Tensor, losses: Mapping[str, Tensor], *, epoch: int, step: int, learning_rate: float) -> None:
    """Stop at the first loss that is no number.

    Raises:
        PipelineError: naming epoch, step, learning rate and every loss.
    """
    if not torch.isfinite(total):
        values = ", ".join(f"{name} = {loss.item():.4g}" for name, loss in losses.items())
        raise PipelineError(
            f"loss is not finite at epoch {epoch}, step {step}: {values}; "
            f"lower learning_rate (now {learning_rate:.3g}) or max_gradient_norm in params.yaml"
        )


def build_optimizer(model: FCN8s, options: Training) -> Optimizer:
    """One parameter group per part that learns, at learning_rate times the part's scale."""
    groups = []
    for part in FCN8s.PARTS:
        parameters = [p for p in model.get_submodule(part).parameters() if p.requires_grad]
        if parameters:
            scale = options.learning_rate_scales.get(part, 1.0)  # type: ignore[call-overload]
            groups.append({"params": parameters, "lr": options.learning_rate * scale, "name": part})
    if options.optimizer == "sgd":
        return SGD(groups, lr=options.learning_rate, momentum=0.9, weight_decay=options.weight_decay)
    return AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)


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
