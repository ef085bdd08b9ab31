"""One step of a training: its passes and gradients, and what it says of itself.

Nothing in a step waits for the device: labels become pairs before they are copied, and the record of a step stays on
the device until `StepRecords` looks, once a second and at the end of an epoch.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pipeline.base.errors import PipelineError
from pipeline.base.ranks import rank_mean
from pipeline.data.samples import Sample, finished
from pipeline.gain.losses import Criterion
from pipeline.gain.network import GuidedOutput, Pairs, class_pairs
from pipeline.training.state import Row
from pipeline.training.task import Task

LOOK_SECONDS = 1.0  # between looks at the losses, each of which waits for the device


def add_gradients(task: Task, guided: Any, batches: Sequence[Sample], ramp: float) -> dict[str, Tensor]:
    """The forward and backward passes of one step.

    Args:
        guided: the task's network as Fabric has set it up.
        batches: of equal size; their gradients and losses are averaged.
        ramp: in [0, 1], factor on the weights of the attention losses.

    Returns:
        Unweighted losses as "loss/NAME" and their weighted sum as "loss/total", and, where attention is guided, how
        many pairs a batch had and how many of them a dead map, as "pairs" and "dead"; each () float32 on the device.
    """
    fabric, criterion = task.fabric, task.criterion
    record: dict[str, Tensor] = {}
    for index, batch in enumerate(batches):
        pairs = class_pairs(batch.image_labels, task.attention.max_classes_per_image)
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


def in_steps(loader: Iterable[Sample], num_batches: int) -> Iterator[list[Sample]]:
    """The batches of a loader, `num_batches` to a step; a rest that fills no step is left out."""
    batches = iter(loader)
    while len(step := list(islice(batches, num_batches))) == num_batches:
        yield step
