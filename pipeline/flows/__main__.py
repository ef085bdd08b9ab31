"""`python -m pipeline.flows FLOW [NAME=VALUE ...]`: a flow in this process; without a server, Prefect starts one."""

import signal
import sys
from collections.abc import Sequence
from typing import Any

from prefect.client.schemas.objects import State

from pipeline.base.errors import PipelineError
from pipeline.base.secrets import hide_secrets
from pipeline.flows.promote import promote
from pipeline.flows.retrain import retrain
from pipeline.flows.services import check_prefect_server
from pipeline.flows.settings import parse_settings
from pipeline.flows.sweep import sweep
from pipeline.flows.train import train

FLOWS: dict[str, Any] = {"train": train, "sweep": sweep, "promote": promote, "retrain": retrain}


def main(arguments: Sequence[str]) -> int:
    """Run a flow, `train` without a name; the exit status: 0 if the run completed, else 1, or 130 after Ctrl-C."""
    hide_secrets()
    name, *settings = arguments or ["train"]
    try:
        if name not in FLOWS:
            raise PipelineError(f"usage: python -m pipeline.flows {{{','.join(FLOWS)}}} [NAME=VALUE ...]")
        parameters, known = parse_settings(settings), list(FLOWS[name].parameters.properties)
        if unknown := sorted(set(parameters) - set(known)):
            raise PipelineError(f"{name} takes no {unknown[0]!r}; known: {', '.join(known)}")
        check_prefect_server()
    except PipelineError as error:
        print(f"flows: error: {error}", file=sys.stderr)
        return 1
    try:
        state: State[Any] = FLOWS[name](**parameters, return_state=True)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    print(f"{name}: {state.name}: {state.message}", flush=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
