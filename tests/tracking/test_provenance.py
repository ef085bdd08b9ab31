"""What a run says of the code that it ran: its commit and the commands that repeat it."""

import pytest
from checkouts import git

from pipeline.tracking.provenance import commit, reproduction, source_tags


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory outside Git, DVC and Prefect."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("DVC_EXP_NAME", "PREFECT__FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def repository(folder):
    """One commit of one file."""
    git(folder, "init", "--quiet")
    (folder / "a").write_text("1")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "Begin")
    return folder


def check_unknown(folder):
    assert commit() == ""
    assert source_tags() == {"mlflow.source.type": "PROJECT", "mlflow.source.name": folder.name}
    assert reproduction().startswith("Made outside Git")


def test_folder_outside_git_has_no_commit(folder):
    check_unknown(folder)


def test_repository_without_a_commit_has_none(folder):
    git(folder, "init", "--quiet")
    check_unknown(folder)


def test_machine_without_git_knows_no_commit(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository))
    check_unknown(repository)


def test_commands_name_the_commit_and_whether_it_is_all(repository):
    revision = git(repository, "rev-parse", "HEAD")
    assert commit() == source_tags()["mlflow.source.git.commit"] == revision
    assert reproduction() == f"Reproduce: `git checkout {revision[:12]} && dvc repro`"
    (repository / "a").write_text("2")
    assert reproduction().endswith("&& dvc repro`, with the changes that were not committed then")


def test_commands_of_an_experiment_apply_it(repository, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "steep-mask")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "abc")
    assert reproduction().endswith("&& dvc exp apply steep-mask && dvc repro`")
    tags = source_tags()
    assert (tags["dvc_experiment"], tags["prefect_flow_run"]) == ("steep-mask", "abc")
