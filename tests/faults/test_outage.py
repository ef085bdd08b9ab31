"""A Prefect server that is away for minutes while a stage trains: part of `make fault-test`."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from uuid import UUID

import pytest
from checkouts import ENDLESS, becomes, git_checkout
from prefect_site import Site, processes, trainers
from processes import without_forks
from servers import free_port

from pipeline.tracking.server import problem_with

pytestmark = pytest.mark.system
OUTAGE_SECONDS = 150.0  # Prefect's own retries last for about a minute


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen]]:
    """What the test starts is ended after it."""
    found: list[subprocess.Popen] = []
    yield found
    for process in found:
        process.kill()
        process.wait()


@pytest.fixture
def site(tmp_path, started) -> Iterator[Site]:
    """A checkout with a worker of its own and a server that the test may end and start again."""
    folder = git_checkout(tmp_path / "repo")
    site = Site(folder, f"http://127.0.0.1:{free_port()}/api")
    started.append(server(site))
    try:
        assert becomes(lambda: problem_with(site.url) is None)
        for arguments in (("work-pool", "create", "gpu", "--type", "process"), ("deploy", "--name", "train/local")):
            result = site.run("-m", "prefect", "--no-prompt", *arguments)
            assert result.returncode == 0, result.stderr
        started.append(prefect(site, "worker", "start", "--pool", "gpu"))
        yield site
    finally:
        for found in processes(folder):
            found.kill()
        assert becomes(lambda: not processes(folder))


def prefect(site: Site, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    own = {"PREFECT_API_URL": site.url, "PREFECT_HOME": str(site.folder / ".prefect"), "PWD": str(site.folder)}
    return subprocess.Popen(
        command, cwd=site.folder, env={**os.environ, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def server(site: Site) -> subprocess.Popen:
    port = site.url.rpartition(":")[2].removesuffix("/api")
    return prefect(site, "server", "start", "--host", "127.0.0.1", "--port", port)


def test_an_outage_costs_a_training_nothing_but_its_progress_display(site, started):
    identity = site.start(overrides=[f"profiles.smoke.pretrain.num_epochs={ENDLESS}"])
    assert becomes(lambda: "pretrain: epoch 1/" in site.log(identity)), site.log(identity)
    (trainer,) = trainers(site)
    for process in without_forks(processes(site.folder, "server", "start")):
        process.kill()
    assert becomes(lambda: problem_with(site.url) is not None)
    time.sleep(OUTAGE_SECONDS)
    assert [found.pid for found in trainers(site)] == [trainer.pid]
    started.append(server(site))
    assert becomes(lambda: problem_with(site.url) is None)
    before = progress(site, identity)
    assert becomes(lambda: progress(site, identity) > before)
    assert [found.pid for found in trainers(site)] == [trainer.pid]
    # Prefect's worker (3.8) does not hear of that any more; the run does.
    assert site.run("-m", "prefect", "flow-run", "cancel", str(identity)).returncode == 0
    assert becomes(lambda: not trainers(site))
    assert site.finished(identity).state.name == "Cancelled"


def progress(site: Site, identity: UUID) -> float:
    """Percent. The log comes later: Prefect's client waits as long again as the server was away."""
    return float(site.artifacts(identity)["progress"])
