"""A stage whose folder another DVC process has."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from checkouts import dvc_checkout
from dvc.repo import Repo
from prefect.logging import disable_run_logger

from pipeline.flows import dag, stage_task

BUSY = dag.BusyError("another process has the folder")


@pytest.fixture
def looked(monkeypatch):
    """How often the folder was looked at; it is busy the first two times."""
    looks: list[str] = []

    def is_up_to_date(_, stage):
        looks.append(stage)
        if len(looks) < 3:
            raise BUSY
        return True

    monkeypatch.setattr(dag, "is_up_to_date", is_up_to_date)
    monkeypatch.setattr(stage_task, "BUSY_SECONDS", 0.0)
    return looks


def runner(*, ended: bool) -> SimpleNamespace:
    return SimpleNamespace(report=SimpleNamespace(folder=Path()), commands=SimpleNamespace(ended=ended))


def test_a_busy_folder_is_waited_for(looked):
    with disable_run_logger():
        assert stage_task._is_up_to_date("pretrain", runner(ended=False))
    assert looked == ["pretrain"] * 3


def test_a_run_that_ends_does_not_wait(looked):
    with disable_run_logger(), pytest.raises(dag.BusyError):
        stage_task._is_up_to_date("pretrain", runner(ended=True))
    assert looked == ["pretrain"]


@pytest.mark.system
def test_the_lock_of_another_dvc_is_told_from_other_failures(tmp_path):
    folder = dvc_checkout(tmp_path / "repo")
    with Repo(str(folder)).lock, pytest.raises(dag.BusyError, match="pretrain: another DVC process is at it"):
        dag.is_up_to_date(folder, "pretrain")
    assert not dag.is_up_to_date(folder, "pretrain")
