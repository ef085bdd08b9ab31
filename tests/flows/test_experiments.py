"""The stages of dvc.yaml as a flow sees them, and clones for runs with other parameters."""

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from checkouts import PATIENCE, checkout, dvc_checkout, git, git_checkout, python, set_params
from filelock import FileLock

from pipeline.base.params import load_params, read_document
from pipeline.flows import dag, experiments
from pipeline.flows.experiments import (
    KEPT_DAYS,
    apply_overrides,
    check_overrides,
    discard,
    held_checkout,
    prepared_experiment,
    remove_old_clones,
)

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return git_checkout(tmp_path_factory.mktemp("dag") / "repo")


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A checkout whose dvc.yaml the tests rewrite."""
    return dvc_checkout(tmp_path_factory.mktemp("spoilt") / "repo")


def rewrite(folder, stage, **meta):
    path = folder / "dvc.yaml"
    content = yaml.safe_load(path.read_text())
    content["stages"][stage]["meta"] = meta
    path.write_text(yaml.safe_dump(content))


def test_stages_come_after_what_they_depend_on_with_their_retries(repository):
    stages = {stage.name: stage for stage in dag.plan(repository)}
    names = list(stages)
    assert len(names) == 11
    for before, after in [
        ("configure", "download"),
        ("download", "prepare"),
        ("prepare", "counterfactual"),
        ("counterfactual", "evaluate"),
        ("pretrain", "classify"),
        ("finetune@gain", "evaluate"),
    ]:
        assert names.index(before) < names.index(after)
    assert stages["download"].meta == dag.Meta(retries=2, retry_delay=10, retry_on="any")
    assert stages["finetune@gain"].meta == dag.Meta(retries=1, retry_delay=5, retry_on="killed")
    assert stages["register"].meta == dag.Meta()


def test_targets_bring_what_they_depend_on(repository):
    assert [stage.name for stage in dag.plan(repository, ["prepare"])] == ["configure", "download", "prepare"]
    assert {stage.name for stage in dag.plan(repository, ["finetune"])} >= {"finetune@control", "finetune@gain_ext"}
    assert "finetune@gain" not in {stage.name for stage in dag.plan(repository, ["finetune@control"])}


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"retrys": 1}, "meta: unknown key 'retrys'; did you mean 'retries'?"),
        ({"retries": -1}, "meta: retries: Input should be greater than or equal to 0, got -1"),
        ({"retries": "two"}, "meta: retries: Input should be a valid integer, got 'two'"),
        ({"retry_delay": -0.5}, "meta: retry_delay: Input should be greater than or equal to 0, got -0.5"),
        ({"retry_on": "never"}, "meta: retry_on: Input should be 'killed' or 'any', got 'never'"),
    ],
)
def test_wrong_meta_is_one_line(spoilt, refused, meta, message):
    rewrite(spoilt, "prepare", **meta)
    assert f"dvc.yaml: prepare: {message}" in refused(dag.plan, spoilt)


def test_no_repository_is_one_line(tmp_path, refused):
    assert "no DVC repository" in refused(dag.plan, tmp_path)
    assert "no stage 'zzz'" in refused(dag.plan, git_checkout(tmp_path / "repo"), ["zzz"])


def test_clone_has_uncommitted_changes_and_overrides_and_leaves_the_checkout_alone(tmp_path):
    folder = git_checkout(tmp_path / "repo")
    set_params(folder, {".pretrain.num_epochs": 7})
    (folder / "prefect.yaml").unlink()
    before = git(folder, "status", "--short"), (folder / "params.yaml").read_bytes()
    with prepared_experiment(folder, ["seed=3"], "three") as first:
        assert (first.name, first.params.seed, first.params.pretrain.num_epochs) == ("three", 3, 7)
        assert not (first.folder / "prefect.yaml").exists()
    assert (git(folder, "status", "--short"), (folder / "params.yaml").read_bytes()) == before
    assert git(folder, "stash", "list") == ""
    with prepared_experiment(folder, ["seed=3"]) as again, prepared_experiment(folder, ["seed=4"]) as other:
        assert again.folder == first.folder != other.folder
    cache = python(folder, "-m", "dvc", "cache", "dir").stdout
    assert python(first.folder, "-m", "dvc", "cache", "dir").stdout == cache
    assert python(first.folder, "-m", "dvc", "config", "cache.type").stdout.strip() == "reflink,hardlink,copy"


def begun(checkout: Path, overrides: list[str]) -> None:
    with prepared_experiment(checkout, overrides):
        raise AssertionError("it was to be refused")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=3", "no such key"),
        ("seed=-3", "seed: Input should be greater"),
        ("seed", "write KEY=VALUE"),
        ("profile=smok", "'smok' is not under profiles"),
        ("profiles.study.pretrain.num_epochs=1", "the chosen profile is smoke"),
        ("profiles.smoke.pretrain.num_epochs=x", "should be a valid integer"),
    ],
)
def test_refused_overrides_leave_no_clone(repository, refused, override, message):
    assert message in refused(begun, repository, [override])
    assert not [path for path in (repository / ".runs").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    "override",
    [
        "sed=3", "seed=-3", "seed", "profile=smok", "profiles.study.pretrain.num_epochs=1", "profiles.none.seed=1",
        "profiles.smoke.pretrain.num_epochs=x", "pretrain.num_epochs=1", "++pretrain.nothing=1", "seed=[1,2",
        "profiles=3", "profiles=null", "~profiles", "profiles.smoke=3", "seed={a: 1}",
    ],
)  # fmt: skip
def test_checked_overrides_are_refused_as_applied_ones_are(repository, tmp_path, refused, override):
    """The fast check of many points beside the slow one."""
    document = read_document(repository / "params.yaml")
    shutil.copy(repository / "params.yaml", tmp_path / "slow.yaml")
    slow = refused(apply_overrides, tmp_path / "slow.yaml", [override])
    assert refused(check_overrides, document, [override], tmp_path) == slow


@pytest.mark.parametrize(
    "override", ["seed=3", "++profiles.smoke.pretrain.learning_rate=1e-05", "++seed=4", "profile=embedded"]
)
def test_checked_overrides_are_taken_as_applied_ones_are(repository, tmp_path, override):
    document = read_document(repository / "params.yaml")
    shutil.copy(repository / "params.yaml", tmp_path / "slow.yaml")
    apply_overrides(tmp_path / "slow.yaml", [override])
    check_overrides(document, [override], tmp_path)
    assert load_params(tmp_path / "params.yaml") == load_params(tmp_path / "slow.yaml")


def test_without_git_other_parameters_are_refused(tmp_path, refused):
    folder = checkout(tmp_path / "repo")
    assert "need a Git checkout with a commit" in refused(begun, folder, ["seed=3"])


def test_clone_with_a_record_that_waits_is_kept(tmp_path):
    folder = git_checkout(tmp_path / "repo")
    with prepared_experiment(folder, ["seed=3"]) as experiment:
        waiting = experiment.folder / ".tracking" / "gain-1"
        waiting.mkdir(parents=True)
        (waiting / "events.jsonl").write_text("{}\n")
        assert not discard(experiment.folder)
        shutil.rmtree(waiting)
        assert discard(experiment.folder)
    assert not experiment.folder.exists()


def test_equal_runs_work_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "get_run_logger", lambda: SimpleNamespace(info=lambda *_: waits.set()))
    folder, waits, order = tmp_path, threading.Event(), []

    def second() -> None:
        with held_checkout(folder):
            order.append("second")

    with held_checkout(folder):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(PATIENCE)
        order.append("first")
    thread.join(PATIENCE)
    assert order == ["first", "second"]


def test_old_clones_are_removed_unless_they_are_in_use(tmp_path):
    runs, long_ago = tmp_path / ".runs", time.time() - (KEPT_DAYS + 1) * 86_400
    for name in ("old", "new", "used", "waits", "before_locks"):
        (runs / name / ".tracking" / "gain").mkdir(parents=True)
        if name != "before_locks":
            (runs / f"{name}.lock").touch()
    (runs / "waits" / ".tracking" / "gain" / "events.jsonl").touch()
    (runs / "gone.lock").touch()
    for path in runs.iterdir():
        if path.name != "new":
            os.utime(path, (long_ago, long_ago))
    with FileLock(runs / "used.lock"):
        remove_old_clones(tmp_path)
    assert sorted(path.name for path in runs.iterdir() if path.is_dir()) == ["new", "used", "waits"]
    assert not (runs / "gone.lock").exists()


def test_several_runs_may_remove_old_clones_at_once(tmp_path):
    runs, long_ago = tmp_path / ".runs", time.time() - (KEPT_DAYS + 1) * 86_400
    for index in range(200):
        (runs / f"{index}").mkdir(parents=True)
        os.utime(runs / f"{index}", (long_ago, long_ago))
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(remove_old_clones, tmp_path) for _ in range(8)]:
            done.result()
    assert not [path for path in runs.iterdir() if path.is_dir()]
