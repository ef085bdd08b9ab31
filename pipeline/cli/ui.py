"""`gain ui`: MLflow's UI on the runs of this project, and where its saved views are."""

import signal
import subprocess
import sys
import time
from contextlib import suppress

from pipeline.base.errors import without_credentials
from pipeline.release.registry import registry_errors
from pipeline.tracking.saved_views import VIEWS, view_page
from pipeline.tracking.server import connect, problem_with, tracking_uri

POLL_SECONDS = 0.5  # between questions whether the UI answers


def show_runs(port: int) -> int:
    """Print the addresses of the saved views; for a local database, serve MLflow's UI until it is interrupted.

    Args:
        port: of the UI on 127.0.0.1.

    Returns:
        An exit code: that of the UI, or 0 where a tracking server has its own.

    Raises:
        PipelineError: the tracking server does not answer.
    """
    uri = tracking_uri()
    with registry_errors("the list of runs"):
        _, experiment_id = connect()
    base = without_credentials(uri.rstrip("/")) if uri.startswith("http") else f"http://127.0.0.1:{port}"
    pages = [f"{name}: {base}/{view_page(name, experiment_id)}" for name in VIEWS]
    if uri.startswith("http"):
        print(*pages, sep="\n")
        return 0
    return _serve(["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)], base, pages)


def _serve(options: list[str], base: str, pages: list[str]) -> int:
    server = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "mlflow", "ui", *options])
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    with suppress(KeyboardInterrupt):  # which reaches the server too
        while server.poll() is None and problem_with(base):
            time.sleep(POLL_SECONDS)
        if server.poll() is None:
            print("", *pages, "", sep="\n", flush=True)  # after the server's own output, so that they can be found
    with suppress(KeyboardInterrupt):
        return server.wait()
    return 0
