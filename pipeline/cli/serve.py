"""`gain serve`: a version of the registry over HTTP, in processes of their own and with the version's own code."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from pipeline.base.cores import usable_cores
from pipeline.base.errors import PipelineError
from pipeline.base.params import load_params
from pipeline.release.registry import download_model
from pipeline.release.server import MODEL_VARIABLE, WAITING_VARIABLE

SERVER = Path("pipeline", "release", "server.py")
KEEP_ALIVE_SECONDS = 60  # more than Retry-After says: a connection must not close as its client comes back


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


def serve_model(alias: str, profile: str | None, address: Address, *, workers: int, waiting: int) -> int:
    """Serve the version that has `alias` now, until Ctrl-C or SIGTERM; the server's exit status.

    Args:
        workers: processes, which share the processor and hold a network each.
        waiting: requests of a worker that may wait for their turn.

    Raises:
        PipelineError: no version has the alias, the registry does not answer, or the version has no server in it.
    """
    name = load_params(profile=profile).register_.registered_model_name
    with tempfile.TemporaryDirectory() as folder:
        model = download_model(name, alias, Path(folder))
        code = next((path for path in model.glob("code*") if (path / SERVER).exists()), None)
        if code is None:
            raise PipelineError(
                f"{name}@{alias} was registered before there was `gain serve`; serve it with `mlflow models serve`, or "
                "train again for a new version"
            )
        environment = {
            "OMP_NUM_THREADS": str(max(1, usable_cores() // workers)),
            **os.environ,
            MODEL_VARIABLE: str(model),
            WAITING_VARIABLE: str(waiting),
            "PYTHONPATH": str(code),  # the code that the version was registered with, not this checkout's
        }
        command = [sys.executable, "-m", "uvicorn", "--factory", "pipeline.release.server:create"]
        command += ["--host", address.host, "--port", str(address.port), "--workers", str(workers)]
        command += ["--timeout-keep-alive", str(KEEP_ALIVE_SECONDS)]
        process = subprocess.Popen(command, cwd=folder, env=environment)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            return process.wait()
        except KeyboardInterrupt:  # which has reached the server, too
            return process.wait()
