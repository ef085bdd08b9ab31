"""Who looks on while a network learns: a progress bar, the record in MLflow. What they do changes no result."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from pipeline.training.state import History
from pipeline.training.task import Task


class Work(NamedTuple):
    """What the training steps of an epoch did, on all ranks together; validation is not counted."""

    num_images: int
    num_pairs: int  # whose attention was guided
    seconds: float


class Watcher(Protocol):
    """Called by `fit` on the first rank."""

    def begins(self, task: Task, first_epoch: int) -> None:
        """Before the first step; `first_epoch` epochs were done by an earlier process."""

    def step(self, record: Mapping[str, Tensor]) -> None:
        """After each step, with () float32 by name, on the device."""

    def epoch(self, epoch: int, history: History, work: Work) -> None:
        """After validation and checkpoint of an epoch, counted from 1; 0 where no epoch was asked for."""

    def ends(self) -> None:
        """After the last epoch, or when the training fails."""
