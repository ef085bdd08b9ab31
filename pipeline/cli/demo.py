"""`gain demo`: a local page that answers pictures with several models side by side."""

import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn

from pipeline.base.errors import PipelineError
from pipeline.base.params import load_params
from pipeline.base.workspace import Workspace
from pipeline.data.voc import image_path, read_split, split_path
from pipeline.release.demo.application import create
from pipeline.release.registry import download_weights, present_aliases
from pipeline.report.tables import CONTROL

HOST = "127.0.0.1"
MOST_EXAMPLES = 60


def show_demo(weights: Sequence[Path], profile: str | None, port: int) -> None:
    """Serve the page on loopback until Ctrl-C.

    Args:
        weights: files to compare; without any, the registry's champion and challenger, and the control of the last run
            where those two are one.

    Raises:
        PipelineError: there are no weights, or they are damaged, or the registry does not answer, or the port is taken.
    """
    space = Workspace()
    listener = _listener(port)
    with tempfile.TemporaryDirectory() as folder:
        models = named(weights) if weights else registered(profile, space, Path(folder))
        application = create(models, examples(space))
    print(f"demo: {', '.join(models)} on http://{HOST}:{port}, until Ctrl-C", flush=True)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(application, log_level="warning")).run(sockets=[listener])


def _listener(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        raise PipelineError(f"port {port} of {HOST}: {error.strerror}; choose another with --port") from error
    return listener


def named(weights: Sequence[Path]) -> dict[str, Path]:
    """Files by their stems, or by their paths where two have one stem."""
    stems = [path.stem for path in weights]
    return {str(path) if stems.count(path.stem) > 1 else path.stem: path for path in weights}


def registered(profile: str | None, space: Workspace, folder: Path) -> dict[str, Path]:
    """The versions of the registry below `folder`, and the control of the last run beside a single one."""
    name = load_params(profile=profile).register_.registered_model_name
    try:
        aliases = present_aliases(name)
    except PipelineError as error:
        raise PipelineError(
            f"{error}; or name files: gain demo --weights models/finetune/gain_ext.safetensors"
        ) from error
    found: dict[str, Path] = {}
    for alias in aliases:
        path = download_weights(name, alias, folder / alias)
        if not any(path.read_bytes() == other.read_bytes() for other in found.values()):
            found[alias] = path
    control = space.weights(CONTROL)
    if len(found) == 1 and control.exists():
        return {CONTROL: control, **found}
    return found


def examples(space: Workspace) -> list[Path]:
    """Images of the test split of the last run, if there is one."""
    if not split_path(space.data, "test").exists():
        return []
    return [image_path(space.data, name) for name in read_split(space.data, "test")[:MOST_EXAMPLES]]
