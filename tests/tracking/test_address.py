"""Addresses of MLflow and Prefect that cannot work, found without asking a server."""

import pytest

from pipeline.tracking.address import unusable_server, unusable_tracking


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("foo://x", "begins with 'foo', which MLflow does not know; known: http://, https://, sqlite://, "),
        ("htp://host", "begins with 'htp'"),
        ("postgresql://user:secret@host/db", "needs the Python package psycopg"),
        ("postgresql+psycopg://host/db", "needs the Python package psycopg, which is not installed; install it"),
        ("mysql://user:secret@host/db", "needs the Python package MySQLdb, which is not installed"),
        ("postgresql+nonsense://user:secret@host/db", "is no address of a database"),
        ("mysql://:secret:/", "is no address of a database"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////nowhere/at/all/mlflow.db", "lies in /nowhere/at/all, which does not exist"),
        ("http://", "names no host"),
        ("https:///mlflow", "names no host"),
        ("http://ann:sec/secret@host:5000", "has an @ after a /, ? or #; write in a password / as %2F, ? as %3F"),
        ("http://ann:8080/secret@host:5000", "has an @ after a /, ? or #"),
        ("http://host:secret", "is no address; write http://HOST:PORT"),
        ("http://host:99999", "is no address; write http://HOST:PORT"),
        ("http://[::1", "is no address; write http://HOST:PORT"),
    ],
)
def test_tracking_address_that_cannot_work(uri, problem):
    found = unusable_tracking(uri)
    assert found is not None
    assert found.startswith(problem)
    assert "secret" not in found


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///mlflow.db", "sqlite:////tmp/mlflow.db", "mlruns", "./mlruns", "/tmp/mlruns", "file:///tmp/mlruns",
        "http://127.0.0.1:5000", "https://user:word@host/mlflow/", "http://[::1]:5000", "databricks",
        "databricks://profile",
    ],
)  # fmt: skip
def test_tracking_address_that_may_work(uri):
    assert unusable_tracking(uri) is None


def test_database_with_its_driver_needs_a_host_and_a_name(monkeypatch):
    """The driver of sqlite stands in for that of another database."""
    import sqlite3

    from sqlalchemy.dialects.mysql.mysqldb import MySQLDialect_mysqldb

    monkeypatch.setattr(MySQLDialect_mysqldb, "import_dbapi", classmethod(lambda _: sqlite3))
    assert unusable_tracking("mysql://host/db") is None
    assert unusable_tracking("mysql://host") == "names no host or no database"
    assert unusable_tracking("mysql:///db") == "names no host or no database"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("foo://x/api", "begins with 'foo' instead of http:// or https://"),
        ("127.0.0.1:4200/api", "begins with "),
        ("host/api", "begins with 'no scheme'"),
        ("http:///api", "names no host"),
        ("http://host:0/api", "names no host"),
        ("http://host:port/api", "is no address"),
    ],
)
def test_server_address_that_cannot_work(url, problem):
    assert (unusable_server(url) or "").startswith(problem)


def test_server_address_that_may_work():
    assert unusable_server("http://127.0.0.1:4200/api") is None
