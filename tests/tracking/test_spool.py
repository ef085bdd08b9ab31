"""A spool that several senders may take: one sends it, and for the others it is gone."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest

from pipeline.tracking import spool
from pipeline.tracking.sender import num_waiting
from pipeline.tracking.spool import SentError, Spool

HEADER = {"record": "abc", "weights_sha256": None}
FINISH = json.dumps({"kind": "finish"}) + "\n"


def written(folder: Path) -> Path:
    """A finished spool, as a stage leaves it."""
    (folder / "files").mkdir(parents=True)
    (folder / "header.json").write_text(json.dumps(HEADER))
    (folder / "events.jsonl").write_text(FINISH)
    return folder


def test_a_spool_that_is_gone_stays_gone(tmp_path):
    with pytest.raises(SentError):
        Spool(tmp_path / "sent", watch=False)
    assert not list(tmp_path.iterdir())


def test_a_spool_that_a_stage_is_about_to_write_stays(tmp_path):
    (tmp_path / "new" / "files").mkdir(parents=True)
    with pytest.raises(SentError):
        Spool(tmp_path / "new", watch=False)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["files"]
    written(tmp_path / "other")
    Spool(tmp_path / "other", watch=False).release()


def test_a_finished_spool_is_removed_in_one_step(tmp_path, monkeypatch):
    """While its files are deleted, its place is free, and no sender finds a part of it."""
    monkeypatch.chdir(tmp_path)
    folder, ended, seen = written(tmp_path / ".tracking/finetune-gain"), [], []

    class Watched(TemporaryDirectory):
        def cleanup(self):
            files = sorted(path.name for path in Path(self.name).rglob("*.json*"))
            seen.append((files, folder.exists(), num_waiting()))
            super().cleanup()

    monkeypatch.setattr(spool, "TemporaryDirectory", Watched)
    sent = Spool(folder, watch=False)
    assert num_waiting() == 1
    sent.state["run_id"], sent.finished = "run", True
    sent.close(SimpleNamespace(set_terminated=lambda *state: ended.append(state)))
    assert ended == [("run", "FINISHED")]
    assert seen == [(["events.jsonl", "header.json"], False, 0)]
    assert not list(folder.parent.iterdir())
