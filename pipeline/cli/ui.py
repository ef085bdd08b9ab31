"""`gain ui`: MLflow's UI on the runs of this project, and where its saved views are."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

from pipeline.base.secrets import without_secrets
from pipeline.release.registry import registry_errors
from pipeline.tracking.saved_views import VIEWS, view_page
from pipeline.tracking.server import connect, problem_with, tracking_uri

POLL_SECONDS = 0.5  # between questions whether the UI answers
LAST_LINES_SECONDS = 1.0  # for what a UI that has ended said at last


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
    base = without_secrets(uri.rstrip("/")) if uri.startswith("http") else f"http://127.0.0.1:{port}"
    pages = [f"{name}: {base}/{view_page(name, experiment_id)}" for name in VIEWS]
    if uri.startswith("http"):
        print(*pages, sep="\n")
        return 0
    return _serve(uri, port, base, pages)


def _serve(uri: str, port: int, base: str, pages: list[str]) -> int:
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    # Not as an argument: everybody on the machine may read those.
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    shown = threading.Thread(target=_pass_on, args=(server,), daemon=True)
    shown.start()
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    with suppress(KeyboardInterrupt):  # which reaches the server too
        while server.poll() is None and problem_with(base):
            time.sleep(POLL_SECONDS)
        if server.poll() is None:
            print("", *pages, "", sep="\n", flush=True)  # after the server's own output, so that they can be found
    status = 0
    with suppress(KeyboardInterrupt):
        status = server.wait()
    shown.join(LAST_LINES_SECONDS)
    return status


def _pass_on(server: "subprocess.Popen[str]") -> None:
    assert server.stdout is not None
    for line in server.stdout:
        print(line, end="", file=sys.stderr, flush=True)
