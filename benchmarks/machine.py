"""On what a benchmark ran."""

import platform
from importlib.metadata import version

from pipeline.base.cores import usable_cores


def machine() -> str:
    """Processor, the cores of it that were ours, Python and torch."""
    kind = platform.processor() or platform.machine()
    return f"{kind}, {usable_cores()} cores, Python {platform.python_version()}, torch {version('torch')}"
