"""`gain lr-find`: the learning-rate range test of a stage, as a plot, a table and a run in MLflow."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.base.errors import PipelineError
from pipeline.base.files import atomic_file, write_csv
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.tracking.progress import progress_bar
from pipeline.tracking.tracker import Tracker, Tracking

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.training.range_test import RangeTest


TIMED_STEPS = 3  # after the first, from which the time of all is estimated


class Rates(NamedTuple):
    """The learning rates to test, from the lowest to the highest in equal factors."""

    lowest: float
    highest: float
    num_steps: int


class _Pace:
    """Says after the first steps how long all will take; called after each step."""

    def __init__(self, num_steps: int, advance: Callable[[], None]) -> None:
        self._num_steps, self._advance, self._done = num_steps, advance, 0
        self._began = 0.0

    def __call__(self) -> None:
        self._done += 1
        self._advance()
        if self._done == 1:  # the first step is slower than all others
            self._began = time.monotonic()
        elif self._done == TIMED_STEPS + 1:
            seconds = (time.monotonic() - self._began) / TIMED_STEPS * (self._num_steps - self._done)
            print(f"lr-find: about {seconds:.0f} s for {self._num_steps} steps, less if the loss diverges", flush=True)


def find_learning_rate(params: Params, folder: Path, stage: str, variant: str, rates: Rates) -> str:
    """Test the rates on one device and write reports/lr_find/STAGE[_VARIANT].csv and .png below `folder`.

    Returns:
        The suggestion, and where the plot is, in a sentence.

    Raises:
        PipelineError: there is no such variant, the rates are not in order, or an input of the stage is missing.
    """
    _check(params, stage, variant, rates)
    with Tracking() as tracking:
        from pipeline.report.curves import learning_rate_chart  # torch and matplotlib: seconds; the sender gets ready
        from pipeline.training.assembly import assemble
        from pipeline.training.range_test import range_test

        run = assemble(params.on_one_device(), Workspace(folder), stage, variant)
        name = run.task.name
        with progress_bar(f"lr-find: steps of {name}", rates.num_steps) as advance:
            pace = _Pace(rates.num_steps, advance)
            result = range_test(
                run.task, lowest=rates.lowest, highest=rates.highest, num_steps=rates.num_steps, on_step=pace
            )
        plot = learning_rate_chart(
            result.rates, result.losses, result.smoothed, result.suggestion, f"{name}: learning-rate range test"
        )
        base = folder / "reports" / "lr_find" / name.replace("/", "_")
        rows = zip(result.rates, result.losses, result.smoothed, strict=True)
        write_csv(base.with_suffix(".csv"), [{"rate": r, "loss": x, "smoothed": y} for r, x, y in rows])
        with atomic_file(base.with_suffix(".png")) as partial:
            plot.save(partial, "PNG")
        with Tracker(
            tracking,
            f"lr-find-{name.replace('/', '-')}",
            run_name=f"lr-find-{variant or stage}-seed{params.seed}",
            params=run.used,
            tags={"stage": "lr-find", "variant": variant, "profile": params.profile, "seed": str(params.seed)},
        ) as tracker:
            _log(tracker, result, plot)
    return f"{name}: {_answer(result)} (now {run.task.options.learning_rate:g}); see {base.with_suffix('.png')}"


def _check(params: Params, stage: str, variant: str, rates: Rates) -> None:
    variants = list(params.variants)
    if (stage == "finetune") != bool(variant) or (variant and variant not in variants):
        raise PipelineError(f"finetune takes a variant, one of {', '.join(variants)}; the other stages take none")
    if not 0 < rates.lowest < rates.highest:
        raise PipelineError(f"--lowest {rates.lowest:g} and --highest {rates.highest:g} must be 0 < lowest < highest")


def _answer(result: "RangeTest") -> str:
    ends = "" if result.diverged is None else f"; the loss diverges at {result.diverged:.1e}"
    if result.suggestion is not None:
        return f"try learning_rate: {result.suggestion:.1e}{ends}"
    return f"no clear answer: at no rate does the loss fall by more than single batches scatter{ends}; try more --steps"


def _log(tracker: Tracker, result: "RangeTest", plot: "Image.Image") -> None:
    for step, (rate, loss) in enumerate(zip(result.rates, result.losses, strict=True)):
        tracker.log_metrics({"lr_find/learning_rate": rate, "lr_find/loss": loss}, step=step)
    if result.suggestion is not None:
        tracker.log_metrics({"lr_find/suggestion": result.suggestion}, step=0)
    tracker.log_image("lr_find", plot, step=0)
