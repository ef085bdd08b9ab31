"""Points of a sweep, and how their runs are shared out, on a server that is a few lists."""

from contextlib import contextmanager
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelling, Completed, Failed, Pending, Running

from pipeline.base.errors import PipelineError
from pipeline.flows import workers
from pipeline.flows.points import sweep_points
from pipeline.flows.workers import run_on_workers


class Server:
    """Every run goes through `states`, a step each time that it is read; the last one stays."""

    def __init__(self, states: list[State], *, online: int = 1) -> None:
        self.states = states
        self.online = online
        self.limit: int | None = None
        self.requests = 0
        self.sweep = SimpleNamespace(id="sweep", run_count=0, work_pool_name="control")
        self.names: list[str] = []
        self.runs: dict[UUID, FlowRun] = {}
        self.reads: dict[UUID, int] = {}
        self.most_unfinished = 0
        self.cancelled: list[UUID] = []

    def run_deployment(
        self, _name: str, *, parameters: dict, timeout: int, flow_run_name: str, idempotency_key: str
    ) -> FlowRun:
        assert timeout == 0
        assert parameters["experiment"] == flow_run_name
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name=flow_run_name, state=Pending(), idempotency_key=idempotency_key)
        self.runs[run.id] = run
        self.names.append(flow_run_name)
        self.reads[run.id] = 0
        unfinished = [reads for reads in self.reads.values() if reads < len(self.states)]
        self.most_unfinished = max(self.most_unfinished, len(unfinished))
        return run

    def read_flow_runs(self, *, flow_run_filter: FlowRunFilter, limit: int) -> list[FlowRun]:
        self.requests += 1
        if flow_run_filter.id is None:
            keys = flow_run_filter.idempotency_key.any_
            assert len(keys) <= limit
            return [run for run in self.runs.values() if run.idempotency_key in keys]
        assert len(flow_run_filter.id.any_) <= limit
        return [self._read(identity) for identity in flow_run_filter.id.any_ if identity in self.runs]

    def _read(self, identity: UUID) -> FlowRun:
        state = self.states[min(self.reads[identity], len(self.states) - 1)]
        self.reads[identity] += 1
        self.runs[identity] = self.runs[identity].model_copy(update={"state": state})
        return self.runs[identity]

    def read_work_pool(self, _pool: str) -> object:
        return SimpleNamespace(concurrency_limit=self.limit)

    def read_deployment_by_name(self, _name: str) -> object:
        return SimpleNamespace(work_pool_name="gpu")

    def read_workers_for_work_pool(self, _pool: str) -> list[object]:
        return [SimpleNamespace(status=SimpleNamespace(value="ONLINE"))] * self.online

    def set_flow_run_state(self, identity: UUID, _state: State) -> None:
        self.cancelled.append(identity)


@pytest.fixture
def serve(monkeypatch):
    def install(server: Server) -> Server:
        @contextmanager
        def client(*, sync_client: bool):
            assert sync_client
            yield server

        monkeypatch.setattr(workers, "get_client", client)
        monkeypatch.setattr(workers, "run_deployment", server.run_deployment)
        monkeypatch.setattr(workers, "POLL_SECONDS", 0.0)
        monkeypatch.setattr(workers, "POOL_SECONDS", 0.0)
        monkeypatch.setattr(workers, "current_flow_run", lambda: server.sweep)
        return server

    return install


RUNS = [{"experiment": f"sweep-{index:02d}"} for index in range(1, 6)]


def test_runs_come_back_in_order_and_no_more_than_allowed_are_open(serve):
    server = serve(Server([Pending(), Running(), Completed()]))
    finished = run_on_workers(RUNS, "train/local", 2)
    assert [server.runs[child.identity].name for child in finished] == [run["experiment"] for run in RUNS]
    assert all(child.completed for child in finished)
    assert server.most_unfinished == 2
    assert server.cancelled == []


def test_a_failed_run_does_not_stop_the_others(serve):
    serve(Server([Failed()]))
    assert [child.state_name for child in run_on_workers(RUNS, "train/local", 5)] == ["Failed"] * 5


@pytest.mark.parametrize(("limit", "online", "expected"), [(None, 3, 3), (2, 3, 2), (4, 1, 4)])
def test_without_a_number_as_many_are_open_as_the_pool_takes(serve, limit, online, expected):
    server = serve(Server([Pending(), Running(), Completed()], online=online))
    server.limit = limit
    run_on_workers(RUNS, "train/local", None)
    assert server.most_unfinished == expected


def test_a_run_that_was_deleted_has_ended(serve, monkeypatch):
    server = serve(Server([Pending(), Pending(), Completed()]))

    def start_and_forget_the_first(*arguments, **options) -> FlowRun:
        run = server.run_deployment(*arguments, **options)
        if run.name == "sweep-01":
            del server.runs[run.id]
        return run

    monkeypatch.setattr(workers, "run_deployment", start_and_forget_the_first)
    names = [child.state_name for child in run_on_workers(RUNS, "train/local", 5)]
    assert names == ["Deleted", *["Completed"] * 4]


def test_a_sweep_in_the_pool_of_its_points_leaves_itself_a_place(serve, refused):
    server = serve(Server([Pending(), Running(), Completed()], online=3))
    server.sweep.work_pool_name = "gpu"
    run_on_workers(RUNS, "train/local", None)
    assert server.most_unfinished == 2
    server.limit = 1
    assert "takes one run at once, and that is this sweep" in refused(run_on_workers, RUNS, "train/local", None)


def test_second_try_takes_what_has_completed_and_starts_the_rest(serve):
    server = serve(Server([Failed()]))
    first = run_on_workers(RUNS, "train/local", 5)
    for child in first[:2]:
        server.runs[child.identity].state = Completed()
    server.runs[first[2].identity].state = Running()  # its worker did not hear that the sweep was gone
    server.runs[first[3].identity].state = Cancelling()  # and its worker is gone, too
    server.states, server.sweep.run_count = [Completed()], 1
    second = run_on_workers(RUNS, "train/local", 5)
    assert [a.identity == b.identity for a, b in zip(first, second, strict=True)] == [True, True, True, False, False]
    assert all(child.completed for child in second)
    assert len(server.names) == 7


def test_a_thousand_points_are_asked_for_by_the_page(serve):
    many = [{"experiment": f"sweep-{index:04d}"} for index in range(1000)]
    server = serve(Server([Completed()]))
    assert len(run_on_workers(many, "train/local", 500)) == 1000
    assert server.requests == 2 * 3  # two rounds of 500 in pages of 200; without an earlier try nothing is asked


def test_runs_that_no_worker_takes_are_cancelled(serve, monkeypatch):
    monkeypatch.setattr(workers, "UNATTENDED_SECONDS", 0.0)
    server = serve(Server([Pending()]))

    def start_and_lose_the_workers(*arguments, **options) -> FlowRun:
        server.online = 0
        return server.run_deployment(*arguments, **options)

    monkeypatch.setattr(workers, "run_deployment", start_and_lose_the_workers)
    with pytest.raises(PipelineError, match="no worker of the pool gpu is online; `prefect worker start --pool gpu`"):
        run_on_workers(RUNS, "train/local", 2)
    assert len(server.cancelled) == 2


def test_without_a_worker_nothing_is_started(serve, refused):
    server = serve(Server([Pending()], online=0))
    assert "no worker of the pool gpu is online" in refused(run_on_workers, RUNS, "train/local", 2)
    assert server.names == []


def test_a_grid_is_every_combination_and_a_list_is_taken_as_it_is(refused):
    assert sweep_points({"seed": [0, 1], "profile": ["smoke"]}, None) == [
        ["seed=0", 'profile="smoke"'],
        ["seed=1", 'profile="smoke"'],
    ]
    assert sweep_points(None, [["seed=1"]]) == [["seed=1"]]
    for grid, points in ((None, None), ({"seed": [1]}, [["seed=1"]])):
        assert "a grid or a list of points" in refused(sweep_points, grid, points)
