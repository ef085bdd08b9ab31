"""Files of weights from elsewhere."""

from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def checkpoint(tmp_path) -> Callable:
    """Saves what it is given and returns the path."""

    def save(content: object, **options: object):
        torch.save(content, tmp_path / "weights.pth", **options)
        return tmp_path / "weights.pth"

    return save
