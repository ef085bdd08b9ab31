"""What a checkpoint keeps of a training, and how the epoch to keep is chosen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pipeline.model.fcn8s import FCN8s

Row = dict[str, float]  # one epoch of the record: epoch, loss/..., train/..., val/...
SELECTION_METRIC = "val/mean_iou"


@dataclass
class History:
    """The record of a training: one row per epoch, and the proof that frozen parts stood still."""

    rows: list[Row] = field(default_factory=list)
    snapshots: list[Tensor] = field(default_factory=list)  # of `observe`: before training and after each epoch
    selected_epoch: int = 0
    frozen: dict[str, dict[str, str]] = field(default_factory=dict)
    # One after another, where a training was resumed with others: sums are rounded as threads share them out.
    num_threads: list[int] = field(default_factory=list)

    @property
    def selected(self) -> Row:
        """The row of the epoch whose weights are kept."""
        return self.rows[self.selected_epoch - 1]


class State:
    """Network, optimiser, schedule and record of a training, as they move.

    Args:
        select: keep the weights of the `best` epoch by validation mean IoU, or of the `last`.
    """

    def __init__(
        self, model: FCN8s, optimizer: Optimizer, scheduler: LambdaLR, select: Literal["best", "last"]
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.history = History()
        self._select = select
        self._selected: dict[str, Tensor] | None = None  # weights of the best epoch so far

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history.rows)

    def add(self, row: Row, snapshot: Tensor) -> None:
        """Note a finished epoch and choose between it and the best before it."""
        best = max((earlier[SELECTION_METRIC] for earlier in self.history.rows), default=-math.inf)
        self.history.rows.append(row)
        self.history.snapshots.append(snapshot)
        if self._select == "last":
            self.history.selected_epoch = self.epoch
        elif row[SELECTION_METRIC] > best:
            self.history.selected_epoch = self.epoch
            weights = self.model.state_dict()
            self._selected = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def restore_selected(self) -> None:
        """Give the network the weights of the selected epoch."""
        if self._selected is not None:
            self.model.load_state_dict(self._selected)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: tensors, numbers, text and containers of them."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rows": self.history.rows,
            "snapshots": self.history.snapshots,
            "selected_epoch": self.history.selected_epoch,
            "selected_state": self._selected,
            "num_threads": self.history.num_threads,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history = History(
            state["rows"], state["snapshots"], state["selected_epoch"], num_threads=state["num_threads"]
        )
        self._selected = state["selected_state"]
