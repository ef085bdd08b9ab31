"""The processes of one training, a rank per device: how many there are, and what they tell one another.

A training on one device is the only rank, and nothing here costs it anything.
"""

from typing import TypeVar

import torch.distributed
from torch import Tensor

T = TypeVar("T")


def num_ranks() -> int:
    """Of the process group, 1 without one."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank_mean(value: Tensor) -> Tensor:
    """Mean over the ranks of a floating-point tensor that is of one shape on all of them; without gradient."""
    return rank_sum(value) / num_ranks()


def rank_sum(value: Tensor) -> Tensor:
    """Sum over the ranks of a tensor that is of one shape on all of them; without gradient."""
    total = value.detach()
    if num_ranks() > 1:
        total = total.clone()
        torch.distributed.all_reduce(total)
    return total


def gathered(value: T) -> list[T]:
    """What every rank has, in the order of the ranks; tensors should lie in the memory of the host."""
    if num_ranks() == 1:
        return [value]
    values: list[T | None] = [None] * num_ranks()
    torch.distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]
