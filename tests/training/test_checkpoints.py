"""Who may train from a checkpoint, and when a finished one is given up."""

import hashlib
import os

import pytest
import torch
import yaml

from pipeline.base.finished import remove_committed
from pipeline.base.workspace import Workspace
from pipeline.training import checkpoints
from pipeline.training.checkpoints import CheckpointFile


def test_a_second_trainer_is_told_who_is_at_work(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(checkpoints, "LOCK_SECONDS", 0.1)
    checkpoint, second = CheckpointFile(tmp_path, "run"), CheckpointFile(tmp_path, "run")

    def hold() -> None:
        with second.held():
            pytest.fail("two trainers at once")

    with checkpoint.held():
        message = refused(hold)
        assert message.startswith(f"process {os.getpid()} on ")
        assert "is at this training already; wait until it is done, or end it, and rerun" in message
        with CheckpointFile(tmp_path, "other").held():
            pass
    with second.held():
        pass


def test_finished_training_is_found_again_and_replaces_earlier_ones(tmp_path):
    for name in ("first", "second"):
        checkpoint = CheckpointFile(tmp_path, name)
        checkpoint.save({"epoch": 2, "model": torch.ones(3)})
        assert not checkpoint.is_finished
        checkpoint.finish()
    unfinished = CheckpointFile(tmp_path, "third")
    unfinished.save({"epoch": 1})
    again = CheckpointFile(tmp_path, "second")
    assert again.is_finished
    assert again.load()["epoch"] == 2
    assert CheckpointFile(tmp_path, "first").load() is None
    assert unfinished.load() == {"epoch": 1}


@pytest.mark.parametrize("project", [".", "study"])
def test_a_finished_checkpoint_stays_until_dvc_has_committed_the_weights(tmp_path, monkeypatch, project):
    monkeypatch.chdir(tmp_path)
    space = Workspace(tmp_path / project / ("" if project == "." else "seed0"))
    weights = space.models / "finetune" / "gain.safetensors"
    checkpoint = CheckpointFile(space.checkpoints / "finetune" / "gain", "run")
    checkpoint.save({"epoch": 2})
    checkpoint.finish()
    running = CheckpointFile(space.checkpoints / "finetune" / "gain", "other")
    running.save({"epoch": 1})
    (tmp_path / project).mkdir(exist_ok=True)
    (tmp_path / project / "dvc.yaml").write_text("stages: {}\n")

    def lock(content: bytes) -> None:
        path = weights.relative_to(tmp_path / project).as_posix()
        outs = [{"path": path, "md5": hashlib.md5(content).hexdigest()}, {"path": "a folder", "md5": "0.dir"}]
        stages = {"finetune@gain": {"outs": outs}, "evaluate": {}}
        (tmp_path / project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))

    remove_committed(space)  # DVC has locked nothing yet
    lock(b"weights")
    remove_committed(space)  # DVC has removed the output, as before a stage runs
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"others")
    remove_committed(space)
    assert checkpoint.is_finished
    lock(b"others")
    remove_committed(space, but="finetune/gain")
    assert checkpoint.is_finished
    remove_committed(space)
    assert checkpoint.load() is None
    assert running.load() == {"epoch": 1}
