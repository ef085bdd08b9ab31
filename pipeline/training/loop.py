"""The training loop, the same for FCN8s, its classifier and GAIN; they differ in loss weights and frozen parts."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.loaders import start_epoch
from pipeline.model.fcn8s import FCN8s
from pipeline.training.checkpoints import CheckpointFile
from pipeline.training.optimization import (
    build_optimizer,
    freeze,
    frozen_digests,
    gradient_norm,
    learning_rate_schedule,
    prove_frozen,
    training_mode,
)
from pipeline.training.state import History, Row, State
from pipeline.training.step import StepRecords, add_gradients, in_steps
from pipeline.training.task import Task
from pipeline.training.watchers import Watcher, Work


def fit(
    task: Task,
    checkpoint: CheckpointFile,
    validate: Callable[[FCN8s], Row],
    observe: Callable[[FCN8s], Tensor],
    watchers: Sequence[Watcher],
) -> History:
    """Train in place, resuming from `checkpoint` if there is one; the caller removes it on success.

    Every rank calls it; the first one writes checkpoints and calls the watchers.

    Args:
        validate: scores the network after an epoch.
        observe: what to keep of the network before training and after every epoch, such as attention maps.

    Raises:
        PipelineError: a loss is not finite, or a frozen part has changed.
    """
    fabric, model, options = task.fabric, task.model.to(memory_format=torch.channels_last), task.options
    freeze(model, options)
    frozen = frozen_digests(model, options)
    state = begin(task)
    guided, optimizer = fabric.setup(torch.compile(task.network) if task.compiled else task.network, state.optimizer)
    if (saved := checkpoint.load()) is not None:
        state.load_state_dict(saved)
        where = f"after epoch {state.epoch} from {checkpoint.path}"
        print(f"{task.name}: resuming {where}{_other_threads(task, state)}", flush=True)
    else:
        state.history.snapshots.append(observe(model.eval()))
    if state.history.num_threads[-1:] != [torch.get_num_threads()]:
        state.history.num_threads.append(torch.get_num_threads())
    with watched(task, state.epoch, watchers if fabric.is_global_zero else ()) as watching:
        for epoch in range(state.epoch, options.num_epochs):
            begin_epoch(task, epoch)
            means, work = train_one_epoch(task, guided, optimizer, state, watching)
            state.add({"epoch": epoch + 1, **means, **validate(model.eval())}, observe(model))
            if fabric.is_global_zero:
                checkpoint.save(state.state_dict())
            for watcher in watching:
                watcher.epoch(epoch + 1, state.history, work)
        if not state.history.rows:  # no epoch asked for: imported weights as they are
            state.history.rows.append({"epoch": 0, **validate(model.eval())})
            for watcher in watching:
                watcher.epoch(0, state.history, Work(0, 0, 0.0))
    state.restore_selected()
    state.history.frozen = prove_frozen(model, frozen)
    return state.history


def begin(task: Task) -> State:
    """Optimiser and schedule of a training that has not begun."""
    # Where gradients are scaled for float16, they are unscaled before they are clipped, which fused steps do not let.
    fused = task.fabric.strategy.precision.precision != "16-mixed"
    optimizer = build_optimizer(task.model, task.options, fused=fused)
    scheduler = learning_rate_schedule(optimizer, task.num_steps, task.options.warmup_fraction)
    return State(task.model, optimizer, scheduler, task.options.select)


def _other_threads(task: Task, state: State) -> str:
    """What to say of a CPU that goes on with another number of threads than it began with."""
    before, now = state.history.num_threads[-1], torch.get_num_threads()
    if before == now or task.fabric.device.type != "cpu":
        return ""
    return (
        f"; with {now} threads where it was {before}, so that the result will not be the same to the byte as without a "
        f"break: set OMP_NUM_THREADS={before} if it must be"
    )


def begin_epoch(task: Task, epoch: int) -> None:
    """Fix all that an epoch draws at random, so that a resumed training draws it again, and set the modes."""
    start_epoch(task.loader, epoch)
    seed_epoch(task.seed, epoch, task.fabric.global_rank)
    training_mode(task.model, task.options)


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Make dropout and the choice of pairs a function of the three."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0]))


def train_one_epoch(
    task: Task, guided: Any, optimizer: Any, state: State, watchers: Sequence[Watcher]
) -> tuple[Row, Work]:
    """Every batch of the loader once.

    Args:
        guided, optimizer: as Fabric has set them up.

    Returns:
        The means of the epoch over all ranks, and what was done.
    """
    fabric, options, records, begun = task.fabric, task.options, StepRecords(state.epoch + 1), time.perf_counter()
    ramp_steps = max(task.attention.ramp_fraction * task.num_steps, 1.0)
    # Not through Fabric's loader: it would shuffle by the number of passes made, which a resumed process counts from 0.
    for batches in in_steps(task.loader, options.accumulate_grad_batches):
        learning_rate = float(state.scheduler.get_last_lr()[0])
        ramp = min(1.0, (state.scheduler.last_epoch + 1) / ramp_steps)
        record = add_gradients(task, guided, batches, ramp, state.epoch)
        norm = fabric.clip_gradients(
            guided, optimizer, max_norm=options.max_gradient_norm, error_if_nonfinite=False
        ).detach()
        unclip = (norm / options.max_gradient_norm).clamp(min=1.0)
        record["train/gradient_norm"] = norm
        for group in optimizer.param_groups:
            record[f"train/gradient_norm/{group['name']}"] = gradient_norm(group["params"]) * unclip
        optimizer.step()
        optimizer.zero_grad()
        state.scheduler.step()
        records.add(record, learning_rate)
        for watcher in watchers:
            watcher.step(records.latest)
    return _summary(task, records, learning_rate, begun)


@contextmanager
def watched(task: Task, first_epoch: int, watchers: Sequence[Watcher]) -> Iterator[Sequence[Watcher]]:
    """Tell the watchers when a training begins and when it ends, however it ends."""
    for watcher in watchers:
        watcher.begins(task, first_epoch)
    try:
        yield watchers
    finally:
        for watcher in watchers:
            watcher.ends()


def _summary(task: Task, records: StepRecords, learning_rate: float, begun: float) -> tuple[Row, Work]:
    means = records.means()
    num_batches = records.num_steps * task.options.accumulate_grad_batches * task.fabric.world_size
    dead, pairs = means.pop("dead", 0.0), means.pop("pairs", None)  # of a batch, on average
    if pairs is not None:
        means["train/dead_map_rate"] = dead / max(pairs, 1e-6)
    seconds = time.perf_counter() - begun
    work = Work(num_batches * (task.loader.batch_size or 1), round(num_batches * (pairs or 0.0)), seconds)
    return {**means, "train/learning_rate": learning_rate}, work
