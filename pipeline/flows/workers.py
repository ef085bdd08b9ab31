"""Many runs of one deployment, shared by the workers of its pool.

What is kept of a run is its id and its state, and what is asked of the server does not grow with the runs that have
ended: so a sweep may have thousands.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from pipeline.base.errors import PipelineError
from pipeline.flows.flow_run import current_flow_run

T = TypeVar("T")
CANCELLING, GONE = "Cancelling", "Deleted"  # names of states; the second is of runs that the server knows no more
POLL_SECONDS = 2.0
POOL_SECONDS = 10.0  # between two looks at the pool
UNATTENDED_SECONDS = 60.0  # without a worker, after which the runs are cancelled
PAGE = 200  # runs in one answer, the most that the server gives


@dataclass(frozen=True)
class Child:
    """A run of the deployment, as it was seen last."""

    identity: UUID
    state_name: str
    running: bool
    final: bool
    completed: bool

    @staticmethod
    def of(run: FlowRun) -> "Child":
        """What matters of a run that the server knows."""
        state = run.state
        if state is None:
            return Child(run.id, "", running=False, final=False, completed=False)
        return Child(run.id, state.name or "", state.is_running(), state.is_final(), state.is_completed())


def run_on_workers(runs: Sequence[Mapping[str, Any]], deployment: str, max_parallel: int | None) -> list[Child]:
    """Run all as runs of `deployment` until each has ended; when this flow ends early, so do they.

    When this flow is tried again, runs that have completed are not run again, and runs that go on are waited for.

    Args:
        runs: parameters of each, its name as `experiment` among them.
        max_parallel: runs that have not ended, at most; as many as the pool takes without.

    Returns:
        The runs, in the order of `runs`, completed or not.

    Raises:
        PipelineError: deployment or pool do not exist, or no worker has been online for `UNATTENDED_SECONDS`.
    """
    with get_client(sync_client=True) as client:
        pool = _Pool(client, deployment)
        children = _of_earlier_tries(client, len(runs))
        waiting = iter([index for index in range(len(runs)) if index not in children])
        attended = time.monotonic()
        try:
            while True:
                free = (max_parallel or pool.capacity()) - len(_unfinished(children))
                for index in islice(waiting, max(free, 0)):
                    children[index] = Child.of(_start(deployment, runs[index], index))
                if not (open_runs := _unfinished(children)):
                    break
                time.sleep(POLL_SECONDS)
                children |= (open_runs := _seen_again(client, open_runs))
                if any(child.running for child in open_runs.values()) or pool.num_online():
                    attended = time.monotonic()
                if time.monotonic() - attended > UNATTENDED_SECONDS:
                    raise PipelineError(pool.no_worker())
        finally:
            for child in _unfinished(children).values():
                with suppress(Exception):  # the others must be cancelled too
                    client.set_flow_run_state(child.identity, Cancelling(message="its sweep ended"))
    return [children[index] for index in range(len(runs))]


class _Pool:
    """The work pool of a deployment, which exists and has a worker; asked again every POOL_SECONDS."""

    def __init__(self, client: SyncPrefectClient, deployment: str) -> None:
        self._client = client
        create = f"`prefect deploy --name '{deployment}'` creates it as prefect.yaml says"
        try:
            name = client.read_deployment_by_name(deployment).work_pool_name
        except ObjectNotFound:
            raise PipelineError(f"no deployment {deployment!r}; {create}") from None
        if name is None:
            raise PipelineError(f"the deployment {deployment} has no work pool; {create}")
        self._name, self._limit, self._num_online, self._asked = name, 0, 0, 0.0
        if self.num_online() == 0:
            raise PipelineError(self.no_worker())

    def num_online(self) -> int:
        """Workers that the server calls online."""
        self._ask()
        return self._num_online

    def capacity(self) -> int:
        """Runs that the pool takes at once beside this flow: its concurrency limit, or one for each worker; at least 1.

        Raises:
            PipelineError: this flow has the only place.
        """
        self._ask()
        own = int(current_flow_run().work_pool_name == self._name)
        if own and self._limit == 1:
            raise PipelineError(
                f"the work pool {self._name} takes one run at once, and that is this sweep; raise its limit: "
                f"`prefect work-pool update {self._name} --concurrency-limit 4`"
            )
        return max((self._limit or self._num_online) - own, 1)

    def no_worker(self) -> str:
        """What to say where none is online."""
        return f"no worker of the pool {self._name} is online; `prefect worker start --pool {self._name}`"

    def _ask(self) -> None:
        if self._asked and time.monotonic() - self._asked < POOL_SECONDS:
            return
        try:
            self._limit = self._client.read_work_pool(self._name).concurrency_limit or 0
            workers = self._client.read_workers_for_work_pool(self._name)
        except ObjectNotFound:
            create = f"`prefect work-pool create {self._name}`"
            raise PipelineError(f"the work pool {self._name} does not exist; {create}") from None
        self._num_online = sum(str(worker.status.value) == "ONLINE" for worker in workers)
        self._asked = time.monotonic()


def _start(deployment: str, parameters: Mapping[str, Any], index: int) -> FlowRun:
    return run_deployment(  # type: ignore[return-value]
        deployment,
        parameters=dict(parameters),
        timeout=0,
        flow_run_name=parameters["experiment"],
        idempotency_key=_key(index, current_flow_run().run_count),
    )


def _key(index: int, attempt: int) -> str:
    """By which the server knows a run that a try of this flow has started, so that no try starts it again."""
    return f"{current_flow_run().id}-{index}-{attempt}"


def _of_earlier_tries(client: SyncPrefectClient, num_runs: int) -> dict[int, Child]:
    """By index, runs of earlier tries of this flow that have completed or go on; one that failed is run again."""
    found: dict[int, Child] = {}
    keys = {_key(i, attempt): i for attempt in range(current_flow_run().run_count) for i in range(num_runs)}
    for page in pages(keys):
        wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=page))
        for run in client.read_flow_runs(flow_run_filter=wanted, limit=PAGE):
            child = Child.of(run)
            if child.completed or not (child.final or child.state_name == CANCELLING):
                found[keys[str(run.idempotency_key)]] = child
    return found


def _seen_again(client: SyncPrefectClient, children: Mapping[int, Child]) -> dict[int, Child]:
    """The newest of each; one that was deleted on the server has ended, and not well."""
    places = {child.identity: index for index, child in children.items()}
    seen = {
        index: Child(child.identity, GONE, running=False, final=True, completed=False)
        for index, child in children.items()
    }
    for page in pages(places):
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=page))
        for run in client.read_flow_runs(flow_run_filter=wanted, limit=PAGE):
            seen[places[run.id]] = Child.of(run)
    return seen


def pages(items: Iterable[T]) -> Iterator[list[T]]:
    """The items in lists of PAGE."""
    rest = iter(items)
    while page := list(islice(rest, PAGE)):
        yield page


def _unfinished(children: Mapping[int, Child]) -> dict[int, Child]:
    return {index: child for index, child in children.items() if not child.final}
