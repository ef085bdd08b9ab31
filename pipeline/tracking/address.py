"""Whether an address of MLflow or Prefect can be used at all: what is known before a server is asked."""

import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

FOLDERS = ("", "file")
WEB = ("http", "https")
DATABASES = ("sqlite", "mysql", "postgresql", "mssql")  # MLflow's; "+DRIVER" may follow
CLOUDS = ("databricks", "databricks-uc", "uc")


def unusable_server(url: str) -> str | None:
    """Why no server can be at `url`, in a few words without credentials; None if one can."""
    if re.search(r"://[^/?#]*[/?#].*@", url):
        # What stands before it may be the rest of a password, which would be sent to another host as a path.
        return "has an @ after a /, ? or #; write in a password / as %2F, ? as %3F, # as %23 and @ as %40"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # the text of which may hold a password
        return "is no address; write http://HOST:PORT"
    if parts.scheme not in WEB:
        return f"begins with {parts.scheme or 'no scheme'!r} instead of http:// or https://"
    if not parts.hostname or port == 0:
        return "names no host"
    return None


def unusable_tracking(uri: str) -> str | None:
    """Why MLflow cannot use `uri` as MLFLOW_TRACKING_URI, in a few words without credentials; None if it can."""
    scheme = uri.partition(":")[0] if "://" in uri or uri.startswith("databricks") else ""
    kind = scheme.partition("+")[0]
    if scheme in WEB:
        return unusable_server(uri)
    if kind in DATABASES:
        return _unusable_database(uri)
    plugins = {entry.name for entry in entry_points(group="mlflow.tracking_store")}
    if scheme in {*FOLDERS, *CLOUDS, *plugins}:
        return None
    known = ", ".join(f"{name}://" for name in (*WEB, *DATABASES, "file"))
    return f"begins with {scheme!r}, which MLflow does not know; known: {known}"


def _unusable_database(uri: str) -> str | None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = make_url(uri)
        url.get_dialect().import_dbapi()
    except (SQLAlchemyError, ValueError):  # the text of which has the whole address
        return "is no address of a database; write DIALECT://USER:PASSWORD@HOST:PORT/NAME"
    except ImportError as error:
        return f"needs the Python package {error.name}, which is not installed; install it"
    if url.get_backend_name() != "sqlite":
        if "@" in f"{url.host}{url.database}":
            return "has several @; write an @ of a password as %40"
        return None if url.host and url.database else "names no host or no database"
    if not url.database or url.database == ":memory:":
        return "names no file, so that every process would have a database of its own"
    folder = Path(url.database).absolute().parent
    return None if folder.is_dir() else f"lies in {folder}, which does not exist"
