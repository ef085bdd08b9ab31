"""What `gain flow` decides without a server; tests/flows/test_flows.py runs it with one."""

import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID, uuid4

import httpx
import psutil
import pytest
from prefect.client.schemas.objects import Log
from prefect.states import Completed, Running

from pipeline.base.errors import PipelineError
from pipeline.base.files import write_json
from pipeline.flows import local_server, processes

RUN = uuid4()


@dataclass
class Server:
    """Answers like one: states in turn, and the log so far, newest first."""

    states: list[object] = field(default_factory=list)
    logs: list[Log] = field(default_factory=list)
    online: list[str] = field(default_factory=list)

    def read_flow_run(self, _identity: UUID) -> object:
        state = self.states.pop(0)
        if isinstance(state, BaseException):
            raise state
        return SimpleNamespace(state=state)

    def read_logs(self, _wanted: object, *, offset: int, limit: int, **_sort: object) -> list[Log]:
        newest_first = sorted(self.logs, key=lambda log: log.timestamp, reverse=True)
        return newest_first[offset : offset + limit]

    def read_workers_for_work_pool(self, _pool: str) -> list[object]:
        return [SimpleNamespace(name=name, status=SimpleNamespace(value="ONLINE")) for name in self.online]


def line(text: str, seconds: float) -> Log:
    time = datetime.now(UTC) + timedelta(seconds=seconds)
    return Log(id=uuid4(), name="test", level=20, message=text, timestamp=time, flow_run_id=RUN)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch) -> None:
    monkeypatch.setattr(local_server, "WATCH_SECONDS", 0.0)


def test_a_port_in_use_leads_to_another(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr(local_server, "PORT", port)
        assert local_server._free_port() not in (0, port)
    assert local_server._free_port() == port


def test_lines_are_shown_once_and_in_order_however_many_and_late():
    server, shown = Server(logs=[line(str(index), index) for index in range(450)]), set[UUID]()
    assert [log.message for log in local_server._new_lines(server, RUN, shown)] == [str(index) for index in range(450)]
    server.logs += [line("late", 448.5), line("next", 450)]
    assert [log.message for log in local_server._new_lines(server, RUN, shown)] == ["late", "next"]
    assert local_server._new_lines(server, RUN, shown) == []


def test_brackets_of_a_line_are_shown(capsys):
    server = Server([Running(), Completed()], [line("see [/data/voc] [type=int_parsing]", 0)])
    assert local_server._watch(server, RUN, "http://127.0.0.1:4200").is_completed()
    assert "see [/data/voc] [type=int_parsing]" in capsys.readouterr().out


def test_a_server_that_goes_away_is_one_line(refused):
    message = refused(
        local_server._watch, Server([Running(), httpx.ConnectError("gone")]), RUN, "http://127.0.0.1:4200"
    )
    assert "http://127.0.0.1:4200 does not answer any more" in message


def test_ctrl_c_says_that_the_run_goes_on(capsys):
    server = Server([Running(), KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        local_server._watch(server, RUN, "http://127.0.0.1:4200")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"flow: the run goes on, see http://127.0.0.1:4200/runs/flow-run/{RUN}; `gain down` ends it")


def test_a_worker_that_has_died_is_replaced(tmp_path, monkeypatch):
    """Just now, or in a crash that took the server along, which still has it among those online."""
    monkeypatch.chdir(tmp_path)
    worker = local_server._worker_name("gpu")
    server = Server(online=[worker])
    assert not local_server._has_worker(server, "gpu", worker)
    write_json(processes.STARTED, [{"name": "worker of gpu", "pid": psutil.Process().pid, "created": 1.0, "url": ""}])
    assert not local_server._has_worker(server, "gpu", worker)
    write_json(
        processes.STARTED,
        [{"name": "worker of gpu", "pid": psutil.Process().pid, "created": psutil.Process().create_time(), "url": ""}],
    )
    assert local_server._has_worker(server, "gpu", worker)


def test_a_worker_of_another_checkout_or_machine_is_enough(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worker = local_server._worker_name("gpu")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert local_server._worker_name("gpu") != worker
    assert local_server._has_worker(Server(online=[worker]), "gpu", local_server._worker_name("gpu"))


@pytest.mark.system
def test_credentials_are_not_part_of_a_failure(monkeypatch):
    monkeypatch.setattr(local_server, "PREFECT", ("sh", "-c", "echo cannot reach http://ann:hidden@host >&2; exit 1"))
    with pytest.raises(PipelineError) as failure:
        local_server._prefect("http://ann:hidden@host/api", "deploy")
    assert str(failure.value) == "prefect deploy: cannot reach http://host"
