"""The learning-rate range test (Smith, WACV 2017, arXiv 1506.01186): which rates a training stands."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from pipeline.data.loaders import start_epoch
from pipeline.training.optimization import build_optimizer, freeze, training_mode
from pipeline.training.step import add_gradients, in_steps
from pipeline.training.task import Task

SMOOTHING = 0.9  # of the exponential average of the losses
DIVERGED = 4.0  # times the lowest smoothed loss
LEFT_OUT = 0.1  # of the steps, the first: the network settles, and the smoothed loss has little to average
FEWEST = 10  # steps to tell a slope from the scatter of single batches
CLEAR = 5.0  # standard errors of the slope below 0


@dataclass
class RangeTest:
    """The weighted loss, step by step, under a rising learning rate.

    Args:
        diverged: the rate at which the loss diverged; None if it never did.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    diverged: float | None = None

    @property
    def suggestion(self) -> float | None:
        """The middle of the decade of rates in which the loss falls steepest, before the smoothed loss is lowest.

        None where there is no clear answer: at no rate does the loss fall by more than single batches scatter.
        """
        logs = [math.log10(rate) for rate in self.rates]
        if len(logs) < FEWEST:
            return None
        width = max(FEWEST, round((len(logs) - 1) / (logs[-1] - logs[0])))
        end = self.smoothed.index(min(self.smoothed)) + 1
        falls = {}
        for first in range(math.ceil(LEFT_OUT * len(logs)), end - width + 1):
            window = slice(first, first + width)
            slope, error = _slope(logs[window], self.losses[window])
            if slope < -CLEAR * error:
                falls[sum(logs[window]) / width] = slope
        return 10.0 ** min(falls, key=falls.__getitem__) if falls else None


def _slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Of the line of least squares, and its standard error."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    return slope, math.sqrt(rest / (len(x) - 2) / spread)


def range_test(
    task: Task, *, lowest: float, highest: float, num_steps: int, on_step: Callable[[], None] = lambda: None
) -> RangeTest:
    """Train for `num_steps` steps while the rate rises from `lowest` to `highest`; the network's weights are spent.

    Each part's rate is the rate times its scale in the task's options. The test ends early once the loss has diverged.

    Args:
        on_step: called after each step.
    """
    fabric, model, options = task.fabric, task.model, task.options
    freeze(model, options)
    optimizer = build_optimizer(model, options, fused=False)
    scales = [group["lr"] / options.learning_rate for group in optimizer.param_groups]
    guided, fabric_optimizer = fabric.setup(task.network, optimizer)
    training_mode(model, options)
    start_epoch(task.loader, 0)
    steps = in_steps(chain.from_iterable(repeat(task.loader)), options.accumulate_grad_batches)
    result, average = RangeTest([], [], []), 0.0
    for step in range(num_steps):
        rate = lowest * (highest / lowest) ** (step / max(1, num_steps - 1))
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        record = add_gradients(task, guided, next(steps), 1.0, 0)
        total = float(record["loss/total"])
        if not math.isfinite(total):
            result.diverged = rate
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * total
        result.rates.append(rate)
        result.losses.append(total)
        result.smoothed.append(average / (1 - SMOOTHING ** (step + 1)))
        if result.smoothed[-1] > DIVERGED * min(result.smoothed):
            result.diverged = rate
            break
        fabric.clip_gradients(guided, fabric_optimizer, max_norm=options.max_gradient_norm, error_if_nonfinite=False)
        fabric_optimizer.step()
        fabric_optimizer.zero_grad()
        on_step()
    return result
