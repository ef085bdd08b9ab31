"""Databases of other MLflows: one whole line with the command that helps, and not a byte changed."""

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from checkouts import checkout, gain, one_line, tracking_database

from pipeline.base.errors import PipelineError
from pipeline.tracking.schema import unusable_schema
from pipeline.tracking.server import DEFAULT_URI, connect

OLDER = "version_num = '451aebb31d03'"  # the first revision of MLflow that has a name
NEWER = "version_num = 'ffffffffffff'"


def database(folder: Path, change: str = "", *more: str) -> Path:
    """mlflow.db with another revision in its table `alembic_version`."""
    path = tracking_database(folder / "mlflow.db")
    execute(path, *([f"UPDATE alembic_version SET {change}"] if change else []), *more)
    return path


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "more", "parts"),
    [
        # Without one of its tables, MLflow would upgrade the database when it opens it.
        (OLDER, ("DROP TABLE webhooks",), ("older than MLflow {version}", "`mlflow db upgrade sqlite:///mlflow.db`")),
        (OLDER, (), ("older than MLflow {version}", "`mlflow db upgrade sqlite:///mlflow.db`")),
        ("", ("DROP TABLE alembic_version",), ("older than MLflow {version}", "copy the database, then run ")),
        (NEWER, (), ("newer than MLflow {version}", "`pip install --upgrade mlflow`", "MLFLOW_TRACKING_URI")),
    ],
)
def test_database_of_another_mlflow_is_refused_and_not_touched(tmp_path, monkeypatch, change, more, parts):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = database(tmp_path, change, *more)
    before = digest(path)
    with pytest.raises(PipelineError) as refusal:
        connect()
    for part in parts:
        assert part.format(version=mlflow.__version__) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert digest(path) == before


def test_databases_of_this_mlflow_and_what_is_none_are_left_to_it(tmp_path):
    assert unusable_schema(f"sqlite:///{database(tmp_path)}", DEFAULT_URI) is None
    (tmp_path / "garbage.db").write_bytes(b"no database " * 100)
    execute(tmp_path / "other.db", "CREATE TABLE notes (text TEXT)")
    for uri in (f"sqlite:///{tmp_path}/garbage.db", f"sqlite:///{tmp_path}/other.db", "http://127.0.0.1:9", "mlruns"):
        assert unusable_schema(uri, DEFAULT_URI) is None
    assert unusable_schema(f"sqlite:///{tmp_path}/none.db", DEFAULT_URI) is None
    assert not (tmp_path / "none.db").exists()


def test_command_shows_no_address_that_may_hold_a_password(tmp_path):
    problem = unusable_schema(f"sqlite:///{database(tmp_path, OLDER)}", DEFAULT_URI)
    assert '`mlflow db upgrade "$MLFLOW_TRACKING_URI"`' in problem
    assert str(tmp_path) not in problem


@pytest.mark.system
def test_commands_say_it_in_one_whole_line(tmp_path):
    folder = checkout(tmp_path / "repo")
    before = digest(database(folder, OLDER))
    for command in (["promote"], ["predict", "a.png", "--out", "out"], ["ui"]):
        one_line(gain(folder, *command), "older than MLflow", '`mlflow db upgrade "$MLFLOW_TRACKING_URI"`')
    assert digest(folder / "mlflow.db") == before
