"""The flow run that this code is part of: its identity, the devices that it uses, its end with its worker."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

PARENT_POLL_SECONDS = 1.0


def current_flow_run() -> FlowRun:
    """The flow run that this code is part of."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run


def visible_gpus() -> str:
    """The GPUs that the worker gives its runs, as a tag."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "CUDA_VISIBLE_DEVICES unset" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"


def record_device(tag: str) -> None:
    """As a tag of the flow run: the GPUs that the worker was given, then the device that a stage says it chose."""
    identity = current_flow_run().id
    with get_client(sync_client=True) as client:
        tags = set(client.read_flow_run(identity).tags)
        if tag not in tags:
            client.update_flow_run(identity, tags=sorted({*tags, tag}))


@contextmanager
def ended_with_parent() -> Iterator[None]:
    """On a worker, a flow ends when its worker does: otherwise the next worker would share the GPU with it."""
    done, parent = threading.Event(), os.getppid()

    def watch() -> None:
        while not done.wait(PARENT_POLL_SECONDS):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if "PREFECT__FLOW_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
