"""What learns, how fast, and the proof that the rest stood still."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pipeline.base.errors import PipelineError
from pipeline.base.sections import Training
from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import state_digest


def frozen_modules(model: FCN8s, options: Training) -> dict[str, nn.Module]:
    """By name, what stands still: parts in `frozen`, and layers before the last `trainable_trunk_blocks`."""
    modules: dict[str, nn.Module] = {part: model.get_submodule(part) for part in options.frozen}
    if "trunk" not in options.frozen:
        layers = model.trunk.layers_before_last(options.trainable_trunk_blocks)
        modules |= {f"trunk.{name}": layer for name, layer in layers.items()}
    return modules


def freeze(model: FCN8s, options: Training) -> None:
    """What stands still gets no gradient; all else does."""
    model.requires_grad_(True)
    for module in frozen_modules(model, options).values():
        module.requires_grad_(False)


def training_mode(model: FCN8s, options: Training) -> None:
    """Training mode, except in what stands still and, on request, in batch normalisation."""
    model.train()
    for module in frozen_modules(model, options).values():
        module.eval()
    if not options.update_batch_norm:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def frozen_digests(model: FCN8s, options: Training) -> dict[str, str]:
    """Of what stands still, by name, the digest of parameters and buffers."""
    return {name: state_digest(module) for name, module in frozen_modules(model, options).items()}


def prove_frozen(model: FCN8s, before: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By name, the digests before and after the training.

    Raises:
        PipelineError: they differ.
    """
    proof = {}
    for name, digest in before.items():
        after = state_digest(model.get_submodule(name))
        if after != digest:
            raise PipelineError(f"{name} is frozen but has changed during training ({digest[:12]} to {after[:12]})")
        proof[name] = {"sha256_before": digest, "sha256_after": after}
    return proof


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
        return SGD(groups, lr=options.learning_rate, momentum=options.momentum, weight_decay=options.weight_decay)
    return AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay, fused=fused)


def learning_rate_schedule(optimizer: Optimizer, num_steps: int, warmup_fraction: float) -> LambdaLR:
    """Linear warm-up over the first `warmup_fraction` of the steps, then half a cosine to 0."""
    warmup = max(1, round(warmup_fraction * num_steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))

    return LambdaLR(optimizer, factor)


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """L2 norm of the gradients, () float32; parameters without a gradient count as 0."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
