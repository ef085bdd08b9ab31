"""The stages of dvc.yaml as a flow sees them, and clones for runs with other parameters."""

import shutil

import pytest
import yaml
from checkouts import checkout, dvc_checkout, git, git_checkout, set_params

from pipeline.flows import dag
from pipeline.flows.experiments import discard, prepare_experiment

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
    first = prepare_experiment(folder, ["seed=3"], "three")
    assert (first.name, first.params.seed, first.params.pretrain.num_epochs) == ("three", 3, 7)
    assert not (first.folder / "prefect.yaml").exists()
    assert (git(folder, "status", "--short"), (folder / "params.yaml").read_bytes()) == before
    assert git(folder, "stash", "list") == ""
    again, other = prepare_experiment(folder, ["seed=3"]), prepare_experiment(folder, ["seed=4"])
    assert again.folder == first.folder != other.folder
    assert dag.cache_folder(first.folder) == dag.cache_folder(folder)


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
    assert message in refused(prepare_experiment, repository, [override])
    assert not list((repository / ".runs").iterdir())


def test_without_git_other_parameters_are_refused(tmp_path, refused):
    folder = checkout(tmp_path / "repo")
    assert "need a Git checkout with a commit" in refused(prepare_experiment, folder, ["seed=3"])


def test_clone_with_a_record_that_waits_is_kept(tmp_path):
    folder = git_checkout(tmp_path / "repo")
    experiment = prepare_experiment(folder, ["seed=3"])
    waiting = experiment.folder / ".tracking" / "gain-1"
    waiting.mkdir(parents=True)
    (waiting / "events.jsonl").write_text("{}\n")
    assert not discard(experiment)
    shutil.rmtree(waiting)
    assert discard(experiment)
    assert not experiment.folder.exists()
