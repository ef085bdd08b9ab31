"""A checkout with a Prefect server and workers of its own, and what tests ask them."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psutil
from checkouts import becomes, git_checkout, python
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from processes import without_forks


@dataclass
class Site:
    """A checkout with a server of its own."""

    folder: Path
    url: str

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return python(self.folder, *arguments, PREFECT_API_URL=self.url)

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        with temporary_settings({PREFECT_API_URL: self.url}), get_client(sync_client=True) as client:
            yield client

    def start(self, deployment: str = "train/local", /, **parameters: object) -> UUID:
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def finished(self, identity: UUID) -> FlowRun:
        with self.client() as client:
            assert becomes(lambda: is_final(client.read_flow_run(identity))), self.log(identity)
            return client.read_flow_run(identity)

    @contextmanager
    def training(self, num_epochs: int) -> Iterator[UUID]:
        """A run of pretrain that would take minutes, at work; it is gone when the block ends, however it ends."""
        identity = self.start(overrides=[f"profiles.smoke.pretrain.num_epochs={num_epochs}"])
        try:
            assert becomes(lambda: "pretrain: epoch 1/" in self.log(identity)), self.log(identity)
            yield identity
        finally:
            self.run("-m", "prefect", "flow-run", "cancel", str(identity))
            self.finished(identity)
            assert becomes(lambda: not trainers(self))

    def log(self, identity: UUID) -> str:
        messages: list[str] = []
        with self.client() as client:
            while True:
                wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[identity]))
                found = client.read_logs(wanted, offset=len(messages), limit=200)
                messages += [entry.message for entry in found]
                if not found:
                    return "\n".join(messages)

    def artifacts(self, identity: UUID) -> dict[str, str]:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[identity]))
        with self.client() as client:
            return {str(found.key): str(found.data) for found in client.read_artifacts(artifact_filter=wanted)}

    def tasks(self, identity: UUID) -> dict[str, str]:
        """Stage to the name of its state."""
        wanted = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[identity]))
        with self.client() as client:
            return {
                run.name.rsplit("-", 1)[0]: str(run.state_name) for run in client.read_task_runs(task_run_filter=wanted)
            }


def is_final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def processes(folder: Path, *words: str) -> list[psutil.Process]:
    """Those that work in or below a folder, with all words in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "ppid", "status"]):
        line, here = " ".join(process.info["cmdline"] or []), process.info["cwd"] or ""
        if (
            process.info["status"] != psutil.STATUS_ZOMBIE
            and here.startswith(str(folder))
            and all(w in line for w in words)
        ):
            found.append(process)
    return found


def trainers(site: Site) -> list[psutil.Process]:
    found = without_forks(processes(site.folder, "stages.pretrain"))
    return [process for process in found if "dvc" not in " ".join(process.info["cmdline"])]


def engines(identity: UUID) -> list[psutil.Process]:
    """What executes a flow run for its worker; the engine of the run before may still be ending."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "prefect.engine" in process.cmdline() and process.environ().get("PREFECT__FLOW_RUN_ID") == str(identity):
                found.append(process)
    return without_forks(found)


@contextmanager
def flown(folder: Path) -> Iterator[Site]:
    """A new checkout in which `gain flow` has run the pipeline; its server and workers are gone when the block ends."""
    git_checkout(folder)
    try:
        first = python(folder, "-m", "pipeline.cli.main", "flow")
        assert first.returncode == 0, first.stdout + first.stderr
        url = json.loads((folder / ".prefect/started.json").read_text())[0]["url"]
        (folder / "first.log").write_text(first.stdout)
        yield Site(folder, url)
    finally:
        python(folder, "-m", "pipeline.cli.main", "down")
    assert becomes(lambda: not processes(folder))
