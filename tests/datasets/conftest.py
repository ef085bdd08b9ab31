"""The small VOC-layout folder and the mirror that these tests share."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from failing_mirror import mirror
from small_folders import voc_root  # noqa: F401 (a fixture)


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    """A mirror's address and the paths asked of it; the path says how it behaves."""
    with mirror() as running:
        yield running
