"""Which stages run at once, on which devices; the stages are futures that the test ends."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from uuid import uuid4

import pytest
from checkouts import becomes
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Completed, Failed

from pipeline.flows.dag import Meta, StagePlan
from pipeline.flows.outcome import RunFailedError
from pipeline.flows.side_by_side import device_groups, reproduce_side_by_side

PLAN = [
    StagePlan("classify", "", Meta()),
    StagePlan("finetune@control", "", Meta(), frozenset({"classify"})),
    StagePlan("finetune@gain", "", Meta(), frozenset({"classify"})),
    StagePlan("finetune@gain_ext", "", Meta(), frozenset({"classify"})),
    StagePlan("evaluate", "", Meta(), frozenset({"finetune@control", "finetune@gain", "finetune@gain_ext", "prepare"})),
]


class Stages:
    """A runner whose stages end when they are told to."""

    def __init__(self) -> None:
        self.report = SimpleNamespace(plan=PLAN, finished=lambda stage, _: self.ended.append(stage))
        self.commands = SimpleNamespace(end=self.stop)
        self.stopped = False
        self.at_work: dict[str, tuple[str, Future]] = {}
        self.ended: list[str] = []
        self.interrupted: list[str] = []

    def submit(self, stage, devices):
        future: Future = Future()
        self.at_work[stage.name] = devices, future
        return PrefectConcurrentFuture(uuid4(), future)

    def end(self, stage, state=None):
        self.at_work.pop(stage)[1].set_result(state or Completed())

    def stop(self):
        """What `Commands.end` does to the stages at work."""
        self.interrupted += list(self.at_work)
        for stage in list(self.at_work):
            self.end(stage, Failed(name="Killed"))

    def become(self, expected: dict[str, str]) -> bool:
        """Whether these stages come to be at work, on these devices."""
        return becomes(lambda: {name: devices for name, (devices, _) in self.at_work.items()} == expected, 10)


@pytest.fixture
def stages():
    return Stages()


@pytest.fixture
def run(stages):
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(reproduce_side_by_side, stages, ["0", "1"])
        stages.stop()  # where an assertion failed


def test_stages_begin_when_those_before_are_done_and_a_device_is_free(stages, run):
    assert stages.become({"classify": "0"})
    stages.end("classify")
    assert stages.become({"finetune@control": "1", "finetune@gain": "0"})
    stages.end("finetune@gain")
    assert stages.become({"finetune@control": "1", "finetune@gain_ext": "0"})
    stages.end("finetune@control")
    assert stages.become({"finetune@gain_ext": "0"})
    stages.end("finetune@gain_ext")
    assert stages.become({"evaluate": "1"})
    stages.end("evaluate")
    assert run.result(10) is None
    assert stages.ended == ["classify", "finetune@gain", "finetune@control", "finetune@gain_ext", "evaluate"]
    assert not stages.stopped


def test_after_a_failure_those_at_work_end_and_none_begins(stages, run):
    assert stages.become({"classify": "0"})
    stages.end("classify")
    assert stages.become({"finetune@control": "1", "finetune@gain": "0"})
    stages.end("finetune@gain", Failed(name="Failed", message="finetune: error: no picture"))
    assert becomes(lambda: stages.stopped, 10)
    assert stages.become({"finetune@control": "1"})
    stages.end("finetune@control")
    with pytest.raises(RunFailedError, match="no picture"):
        run.result(10)
    assert stages.ended == ["classify", "finetune@gain", "finetune@control"]
    assert not stages.interrupted


def test_an_interrupted_run_ends_what_is_at_work(stages, run):
    def interrupted(stage, _):
        if stage == "finetune@gain":
            raise KeyboardInterrupt

    stages.report.finished = interrupted
    assert stages.become({"classify": "0"})
    stages.end("classify")
    assert stages.become({"finetune@control": "1", "finetune@gain": "0"})
    stages.end("finetune@gain")
    with pytest.raises(KeyboardInterrupt):
        run.result(10)
    assert stages.interrupted == ["finetune@control"]


@pytest.mark.parametrize(
    ("visible", "runtime", "groups"),
    [
        (None, {}, []),
        ("", {}, []),
        ("0", {}, []),
        ("0,1", {}, ["0", "1"]),
        ("GPU-1a, GPU-2b", {"device": "cuda"}, ["GPU-1a", "GPU-2b"]),
        ("0,,1", {}, []),
        ("0,1,-1,2", {}, ["0", "1"]),
        ("a,b", {}, []),
        ("0,1,2", {"devices": 2}, []),
        ("0,1,2,3,4", {"devices": 2}, ["0,1", "2,3"]),
        ("0,1", {"device": "cpu"}, []),
        ("0,1", {"num_nodes": 2}, []),
    ],
)
def test_a_group_has_the_devices_of_one_training(monkeypatch, visible, runtime, groups):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    params = SimpleNamespace(runtime=SimpleNamespace(**{"device": "auto", "devices": 1, "num_nodes": 1, **runtime}))
    assert device_groups(params) == groups
