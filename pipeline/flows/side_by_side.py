"""Stages that do not need each other, at once on the devices of one worker: the variants of one classifier."""

import os
import re
from itertools import takewhile
from typing import Any

from prefect.futures import PrefectFuture, as_completed

from pipeline.base.profile import Params
from pipeline.flows.dag import StagePlan
from pipeline.flows.outcome import RunFailedError, require_completed
from pipeline.flows.stage_task import Runner

DEVICE = re.compile(r"\s*(\d+|(GPU|MIG)-\S+)\s*")


def device_groups(params: Params) -> list[str]:
    """The worker's devices, in groups of as many as one training takes, each as CUDA_VISIBLE_DEVICES names it.

    Empty where stages run in turn: the worker was not told its devices, or they are not enough for two trainings, or
    one training takes several machines or no GPU.
    """
    told = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    visible = [device.strip() for device in takewhile(DEVICE.fullmatch, told)]  # CUDA stops at the first that is none
    runtime = params.runtime
    if runtime.device not in ("auto", "cuda") or runtime.num_nodes > 1 or len(visible) < 2 * runtime.devices:
        return []
    starts = range(0, len(visible) - runtime.devices + 1, runtime.devices)
    return [",".join(visible[start : start + runtime.devices]) for start in starts]


def reproduce_side_by_side(runner: Runner, groups: list[str]) -> None:
    """Run the plan, each stage as soon as those before it are done and a group of devices is free.

    After a failure no further stage begins, and none is tried again; those at work are waited for, and DVC keeps what
    they make.

    Raises:
        RunFailedError: a stage failed; the message is that of the first.
    """
    waiting, done, free = list(runner.report.plan), set[str](), list(groups)
    working: dict[PrefectFuture[Any], tuple[StagePlan, str]] = {}
    failures: list[RunFailedError] = []
    planned = {stage.name for stage in waiting}
    try:
        while working or (waiting and not failures):
            ready = [stage for stage in waiting if not (stage.after & planned) - done]
            for stage in ready[: 0 if failures else len(free)]:
                waiting.remove(stage)
                devices = free.pop(0)
                working[runner.submit(stage, devices)] = stage, devices
            future = next(as_completed(list(working)))
            future.wait()  # else its state would be asked of the server
            stage, devices = working.pop(future)
            free.append(devices)
            runner.report.finished(stage.name, future.state)
            try:
                require_completed(future.state)
            except RunFailedError as error:
                failures.append(error)
                runner.stopped = True
            else:
                done.add(stage.name)
    except BaseException:
        runner.commands.end()  # the threads would wait for their trainings
        raise
    if failures:
        raise failures[0]
