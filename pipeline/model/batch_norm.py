"""Batch normalisation over all ranks of a training, with statistics that a recomputed pass leaves alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.base.ranks import num_ranks


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, and two things more; parameters and buffers are the same.

    In training it normalises by the batch of all ranks, so that two devices learn what one would. torch's
    SyncBatchNorm does so on GPUs only. Every rank must have a batch of the same size.

    Under activation checkpointing the forward pass runs twice, but running statistics are updated once.
    """

    recomputing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, H, W) to the same shape."""
        if not self.training:
            return super().forward(x)
        if num_ranks() == 1:
            return self._repeated(x) if self.recomputing else super().forward(x)
        values = x.float()
        mean = _over_ranks(values.mean(dim=(0, 2, 3)))
        variance = _over_ranks((values - mean[:, None, None]).square().mean(dim=(0, 2, 3)))
        if not self.recomputing:
            self._update(mean.detach(), variance.detach(), values.numel() // values.shape[1] * num_ranks())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((values - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _repeated(self, x: Tensor) -> Tensor:
        """The same operation, since checkpointing compares what it saves; the statistics that it updates are copies."""
        assert self.running_mean is not None
        assert self.running_var is not None
        statistics = self.running_mean.clone(), self.running_var.clone()
        return F.batch_norm(x, *statistics, self.weight, self.bias, training=True, eps=self.eps)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)


@contextmanager
def recomputation(module: nn.Module) -> Iterator[None]:
    """While the block runs, passes through `module` are repetitions: their statistics have been counted."""
    layers = [layer for layer in module.modules() if isinstance(layer, BatchNorm2d)]
    for layer in layers:
        layer.recomputing = True
    try:
        yield
    finally:
        for layer in layers:
            layer.recomputing = False


class _SumOverRanks(torch.autograd.Function):
    """What every rank adds, every rank's loss depends on: the gradient is summed over ranks too."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.forward(_, gradient)


def _over_ranks(value: Tensor) -> Tensor:
    """Mean over ranks, with its gradient."""
    if num_ranks() == 1:
        return value
    total: Tensor = _SumOverRanks.apply(value)
    return total / num_ranks()
