"""Trainings for tests: a task around a network, and a watcher that acts after an epoch."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning_fabric import Fabric
from sections import attention_section

from pipeline.base.attention import Attention
from pipeline.base.sections import Training
from pipeline.gain.losses import Criterion
from pipeline.gain.network import GuidedNetwork
from pipeline.model.fcn8s import FCN8s
from pipeline.training.task import Task


def task_of(
    model: FCN8s,
    loader: Any,
    options: Training,
    loss_weights: Mapping[str, float],
    *,
    attention: Attention | None = None,
    fabric: Fabric | None = None,
    name: str = "test",
) -> Task:
    """A training of `model` under seed 0, not compiled, on one process of the CPU if no fabric is given."""
    attention = attention_section() if attention is None else attention
    return Task(
        name=name,
        seed=0,
        fabric=Fabric(accelerator="cpu", devices=1) if fabric is None else fabric,
        network=GuidedNetwork(model, attention),
        criterion=Criterion(loss_weights, model.attention_grid, attention),
        loader=loader,
        options=options,
        attention=attention,
        compiled=False,
    )


class AfterEpoch:
    """A watcher that calls a function with the epoch, the history and the work."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.epoch = call

    def begins(self, task: object, first_epoch: int) -> None:
        pass

    def step(self, record: object) -> None:
        pass

    def ends(self) -> None:
        pass
