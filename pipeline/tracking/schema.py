"""Whether the tables of a tracking database are those of the installed MLflow. Nothing is written.

MLflow changes the tables of an older database when it first opens it, without being asked, if it misses one of its own.
Team mates with the older MLflow could no longer use it then.
"""

from pathlib import Path

from pipeline.tracking.address import DATABASES

ADDRESS = '"$MLFLOW_TRACKING_URI"'  # as a shell reads it: the address may hold a password


def unusable_schema(uri: str, default: str) -> str | None:
    """Why the installed MLflow must not open a database, and the command that mends it; None if it may.

    Args:
        uri: of the database; other servers than databases look after their own tables.
        default: the address that holds without MLFLOW_TRACKING_URI.
    """
    from importlib.metadata import version

    if not _is_there(uri):
        return None
    found, expected, known = _revisions(uri)
    if found is None or found == expected:
        return None
    here = f"MLflow {version('mlflow')}, which is installed here"
    if found in known:
        command = f"mlflow db upgrade {default if uri == default else ADDRESS}"
        return f"its tables are those of an MLflow older than {here}; copy the database, then run `{command}`"
    return (
        f"its tables are those of an MLflow newer than {here}, or of another program; run "
        "`pip install --upgrade mlflow`, or name another database in MLFLOW_TRACKING_URI"
    )


def _is_there(uri: str) -> bool:
    """Whether `uri` names a database, one with a file if it is SQLite's: connecting would create the file."""
    kind = uri.partition("://")[0].partition("+")[0]
    file = uri.partition(":///")[2].partition("?")[0]
    return kind in DATABASES and (kind != "sqlite" or Path(file).exists())


def _revisions(uri: str) -> tuple[str | None, str, set[str]]:
    """Of MLflow's tables: the revision in the database, None if there are none; the installed one; all that it knows.

    A database that does not answer has none: MLflow is to say so, with the retries that it grants a server.
    """
    import mlflow
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        with create_engine(uri, poolclass=NullPool).connect() as connection:
            heads = MigrationContext.configure(connection).get_current_heads()
            before_revisions = not heads and inspect(connection).has_table("experiments")
    except SQLAlchemyError:
        return None, "", set()
    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    known = {script.revision for script in scripts.walk_revisions()}
    oldest = scripts.get_base() or ""
    found = heads[0] if heads else oldest if before_revisions else None
    return found, scripts.get_current_head() or "", known
