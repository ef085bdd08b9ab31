"""One run of the whole pipeline, for the tests of flows and of what it leaves (../conftest.py: ON_ONE_RUN)."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from prefect_site import Site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Site"]:
    """A checkout in which `gain flow` has run the pipeline, with server and workers."""
    from prefect_site import flown  # prefect: seconds

    with flown(tmp_path_factory.mktemp("flows") / "repo") as site:
        shutil.copytree(site.folder, site.folder.with_name("finished"), symlinks=True)
        yield site


@pytest.fixture(scope="session")
def finished(site: "Site") -> Path:
    """The checkout as it was after that run; only to be read."""
    return site.folder.with_name("finished")
