"""Parameters of a flow, as a command line gives them. Without Prefect, whose import takes seconds."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pipeline.base.errors import PipelineError


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Parameters of a flow from NAME=VALUE, values as JSON or text.

    Raises:
        PipelineError: one has no equals sign.
    """
    parameters: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise PipelineError(f"{setting!r} is no NAME=VALUE")
        parameters[name] = value
        with suppress(json.JSONDecodeError):
            parameters[name] = json.loads(value)
    return parameters
