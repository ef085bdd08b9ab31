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
from pipeline.gain.losses import ATTENTION_LOSSES, Counts, Criterion
from pipeline.gain.network import GuidedOutput, Pairs, class_keys, class_pairs
from pipeline.model.batch_norm import recomputation
from pipeline.training.state import Row
from pipeline.training.task import Task

MAPS_ALONE = frozenset({"external_supervision"})  # the loss that needs nothing else of `GuidedNetwork`
LOOK_SECONDS = 1.0  # between looks at the losses, each of which waits for the device


def add_gradients(task: Task, guided: Any, batches: Sequence[Sample], ramp: float, epoch: int) -> dict[str, Tensor]:
    """The forward and backward passes of one step.

    Losses and gradients are those of the whole step, however many parts and ranks work it off, but for dropout and for
    batch statistics, which are of a part.

    Args:
        guided: the task's network as Fabric has set it up.
        batches: the parts of the step on this rank, of equal size.
        ramp: in [0, 1], factor on the weights of the attention losses.
        epoch: counted from 0; with the task's seed, decides which classes of crowded images are guided.

    Returns:
        What the mean over ranks is of the whole step: unweighted losses as "loss/NAME" and their weighted sum as
        "loss/total", and, where attention is guided, how many pairs a part had on average and how many of them a dead
        map, as "pairs" and "dead"; each () and float32, or float64 where the network is, on the device.
    """
    fabric, criterion = task.fabric, task.criterion
    parts: list[tuple[Sample, Pairs]] = [fabric.to_device((batch, _pairs(task, batch, epoch))) for batch in batches]
    # Of a single part, the training pass itself tells what there is to count.
    counts = _counts(task, guided, parts) if len(parts) > 1 else None
    record: dict[str, Tensor] = {}
    for index, (batch, pairs) in enumerate(parts):
        with fabric.no_backward_sync(guided, enabled=index < len(parts) - 1):
            output, losses = forward(guided, batch, pairs, criterion, counts)
            total = criterion.total(losses, ramp)
            fabric.backward(total / len(parts) if len(parts) > 1 else total)
        values = {f"loss/{name}": loss.detach() for name, loss in losses.items()}
        values["loss/total"] = total.detach()
        if output.alive is not None:
            values["pairs"] = torch.full_like(values["loss/total"], output.alive.numel())
            values["dead"] = (~output.alive).sum().float()
        for name, value in values.items():
            record[name] = record.get(name, 0.0) + value / len(parts)
    return record


def forward(
    guided: Any, batch: Sample, pairs: Pairs, criterion: Criterion, counts: Counts | None = None
) -> tuple[GuidedOutput, dict[str, Tensor]]:
    """One forward pass of a `GuidedNetwork` and the unweighted losses of its output.

    Args:
        batch: raw or finished.
        counts: of the step, see `Criterion.__call__`.
    """
    batch = finished(batch)
    image = batch.image.contiguous(memory_format=torch.channels_last)
    output: GuidedOutput = guided(image, pairs, criterion.needs)
    return output, criterion(output, batch, counts)


def _pairs(task: Task, batch: Sample, epoch: int) -> Pairs:
    keys = class_keys(batch.sample_index, batch.image_labels.shape[1], seed=task.seed, epoch=epoch)
    return class_pairs(batch.image_labels, task.attention.max_classes_per_image, keys)


@torch.no_grad()
def _counts(task: Task, guided: Any, parts: Sequence[tuple[Sample, Pairs]]) -> Counts:
    """What the losses of a step are means over, before the first backward pass needs to know.

    Which maps are dead takes a pass of the trunk and of the classifier, about a fifth of a step where attention is
    guided; memory for all parts at once is what accumulation is to save.
    """
    criterion, counts = task.criterion, []
    for batch, pairs in parts:
        output = GuidedOutput()
        if criterion.needs & ATTENTION_LOSSES:
            image = finished(batch).image.contiguous(memory_format=torch.channels_last)
            with recomputation(task.model):
                output = guided(image, pairs, MAPS_ALONE)
        counts.append(criterion.counts(output, batch))
    return Counts.of_step(counts)


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
