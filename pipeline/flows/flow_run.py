"""The flow run that this code is part of: its identity, the devices that it uses, its end from outside."""

import contextvars
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled

PARENT_POLL_SECONDS = 1.0
CANCELLED_POLL_SECONDS = 15.0


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
def ended_from_outside() -> Iterator[None]:
    """On a worker, a flow ends when its worker does, and when it is cancelled.

    Otherwise the next worker would share the GPU with it. Prefect's worker ends a cancelled run itself, but does not
    hear of it any more once the server was away (3.8).
    """
    done, run = threading.Event(), current_flow_run()
    if os.environ.get("PREFECT__FLOW_RUN_ID") == str(run.id):  # not the runs that a flow begins in its own process
        for watch in (_end_with_worker, _end_when_cancelled):
            context = contextvars.copy_context()  # Prefect's settings
            threading.Thread(target=context.run, args=(watch, run, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _end_with_worker(_run: FlowRun, done: threading.Event) -> None:
    parent = os.getppid()
    while not done.wait(PARENT_POLL_SECONDS):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _end_when_cancelled(run: FlowRun, done: threading.Event) -> None:
    """Ends this process at the second sight of a cancelled run: by then the worker would have ended it."""
    seen = False
    while not done.wait(CANCELLED_POLL_SECONDS):
        # A server that is away, in whatever way, says nothing of the run.
        with suppress(Exception), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(run.id).state
                cancelled = state is not None and (state.is_cancelling() or state.is_cancelled())
                if not (cancelled and seen):
                    seen = cancelled
                    continue
                message = "cancelled; the run ended itself, as its worker did not"
                final: State[None] = Cancelled(message=message)
                client.set_flow_run_state(run.id, final, force=True)
                run.state = final  # Prefect's engine would call the run crashed, but leaves a final state alone
            os.kill(os.getpid(), signal.SIGTERM)
            return
