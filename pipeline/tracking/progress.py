"""What the terminal shows of work under way: bars with losses and time left; plain lines where there is no terminal."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipeline.base.errors import warn

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.training.state import History
    from pipeline.training.task import Task
    from pipeline.training.watchers import Work

REFRESH_SECONDS = 0.25  # between two looks at the losses, each of which waits for the device
SHOWN = ("loss/", "val/mean_iou", "val/macro_f1", "val/attention_iou")  # columns of an epoch's line begin so
FALL = 0.01  # share of its first epoch's mean by which a loss must fall to count as falling


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Bar on a terminal; anywhere else, one line when the work is done. Yields a function to call once per item.

    Args:
        total: number of items; None if it is not known.
    """
    started, done = time.monotonic(), 0

    def count() -> None:
        nonlocal done
        done += 1

    if not sys.stdout.isatty():
        yield count
    else:
        with _new_bar(Console()) as progress:
            task = progress.add_task(title, total=total, losses="")

            def advance() -> None:
                count()
                progress.advance(task)

            yield advance
    print(f"{title}: {done} in {time.monotonic() - started:.1f} s", flush=True)


class Progress:
    """Watcher of a training that shows steps and epochs, and warns of losses that do not fall."""

    def __init__(self) -> None:
        self._name = ""
        self._num_epochs = self._first_epoch = 0
        self._started = self._refreshed = time.monotonic()
        self._bar: Bar | None = None
        self._bar_task = TaskID(0)

    def begins(self, task: "Task", first_epoch: int) -> None:
        """Start the bar.

        Args:
            first_epoch: number of epochs that an interrupted process has already done.
        """
        self._name, self._num_epochs, self._first_epoch = task.name, task.options.num_epochs, first_epoch
        self._started = self._refreshed = time.monotonic()
        if sys.stdout.isatty():
            total, done = (epochs * task.steps_per_epoch for epochs in (self._num_epochs, first_epoch))
            self._bar = _new_bar(Console())
            self._bar_task = self._bar.add_task(task.name, total=total, completed=done, losses="")
            self._bar.start()

    def step(self, record: "Mapping[str, Tensor]") -> None:
        """Count one step.

        Args:
            record: its losses as "loss/NAME", each () on the device.
        """
        if self._bar is None:
            return
        self._bar.advance(self._bar_task)
        if time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            losses = {name.removeprefix("loss/"): v for name, v in record.items() if name.startswith("loss/")}
            text = "  ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            self._bar.update(self._bar_task, losses=text)

    def epoch(self, epoch: int, history: "History", work: "Work") -> None:  # noqa: ARG002 -- for other watchers
        """Show a finished epoch in one line, and a warning for each loss that does not fall.

        Args:
            epoch: counted from 1; 0 for the weights of a training without epochs, of which nothing is shown.
            history: of all epochs so far.
        """
        if epoch == 0:
            return
        elapsed = time.monotonic() - self._started
        left = elapsed / (epoch - self._first_epoch) * (self._num_epochs - epoch)
        shown = {name: value for name, value in history.rows[-1].items() if name.startswith(SHOWN)}
        scores = "  ".join(f"{name.split('/')[-1]} {value:.4f}" for name, value in shown.items())
        line = f"{self._name}: epoch {epoch}/{self._num_epochs}  {scores}  {left:.0f} s left"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, flush=True)
        _warn_of_losses_that_do_not_fall(self._name, history.rows)

    def ends(self) -> None:
        """Stop the bar and say how long this process has trained; also after an error."""
        if self._bar is not None:
            self._bar.stop()
        print(f"{self._name}: trained for {time.monotonic() - self._started:.1f} s", flush=True)


def _warn_of_losses_that_do_not_fall(title: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Warn of each loss that has never been below its first epoch by `FALL` of it; from the second epoch on.

    Args:
        title: "STAGE" or "STAGE/VARIANT".
        rows: one per finished epoch, with the means of the losses as "loss/NAME".
    """
    if len(rows) < 2:
        return
    for name in (key for key in rows[0] if key.startswith("loss/") and key != "loss/total"):
        start, lowest = rows[0][name], min(row[name] for row in rows[1:])
        if start > 0 and lowest > (1 - FALL) * start:
            warn(
                f"{title}: {name} does not fall: {start:.4g} in epoch 1, {rows[-1][name]:.4g} in epoch {len(rows)}; "
                f"try `gain lr-find {title.replace('/', ' ')}`, and look at loss_weights and frozen in params.yaml"
            )


def _new_bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
        console=console,
    )
