"""Points of a sweep, and how their runs are shared out, on a server that is a few lists."""

from contextlib import contextmanager
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Failed, Pending, Running

from pipeline.base.errors import PipelineError
from pipeline.flows import workers
from pipeline.flows.points import sweep_points
from pipeline.flows.workers import run_on_workers


class Server:
    """Every run goes through `states`, a step each time that it is read; the last one stays."""

    def __init__(self, states: list[State], *, online: bool = True) -> None:
        self.states = states
        self.online = online
        self.names: list[str] = []
        self.reads: dict[UUID, int] = {}
        self.most_unfinished = 0
        self.cancelled: list[UUID] = []

    def run_deployment(self, _name: str, *, parameters: dict, timeout: int, flow_run_name: str) -> FlowRun:
        assert timeout == 0
        assert parameters["experiment"] == flow_run_name
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name=flow_run_name, state=Pending())
        self.names.append(flow_run_name)
        self.reads[run.id] = 0
        unfinished = [reads for reads in self.reads.values() if reads < len(self.states)]
        self.most_unfinished = max(self.most_unfinished, len(unfinished))
        return run

    def read_flow_run(self, identity: UUID) -> FlowRun:
        state = self.states[min(self.reads[identity], len(self.states) - 1)]
        self.reads[identity] += 1
        return FlowRun(id=identity, flow_id=uuid4(), name=self.names[list(self.reads).index(identity)], state=state)

    def read_deployment_by_name(self, _name: str) -> object:
        return SimpleNamespace(work_pool_name="gpu")

    def read_workers_for_work_pool(self, _pool: str) -> list[object]:
        return [SimpleNamespace(status=SimpleNamespace(value="ONLINE"))] if self.online else []

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
        return server

    return install


RUNS = [{"experiment": f"sweep-{index:02d}"} for index in range(1, 6)]


def test_runs_come_back_in_order_and_no_more_than_allowed_are_open(serve):
    server = serve(Server([Pending(), Running(), Completed()]))
    finished = run_on_workers(RUNS, "train/local", 2)
    assert [run.name for run in finished] == [run["experiment"] for run in RUNS]
    assert server.most_unfinished == 2
    assert server.cancelled == []


def test_a_failed_run_does_not_stop_the_others(serve):
    serve(Server([Failed()]))
    assert [run.state.name for run in run_on_workers(RUNS, "train/local", 5)] == ["Failed"] * 5


def test_runs_that_no_worker_takes_are_cancelled(serve, monkeypatch):
    monkeypatch.setattr(workers, "UNATTENDED_SECONDS", 0.0)
    server = serve(Server([Pending()]))

    def start_and_lose_the_workers(*arguments, **options) -> FlowRun:
        server.online = False
        return server.run_deployment(*arguments, **options)

    monkeypatch.setattr(workers, "run_deployment", start_and_lose_the_workers)
    with pytest.raises(PipelineError, match="no worker of the pool gpu is online; `prefect worker start --pool gpu`"):
        run_on_workers(RUNS, "train/local", 2)
    assert len(server.cancelled) == 2


def test_without_a_worker_nothing_is_started(serve, refused):
    server = serve(Server([Pending()], online=False))
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
