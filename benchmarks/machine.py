"""On what a benchmark ran."""

import os
import platform


def machine() -> str:
    """Cores, kind of processor, Python."""
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}"
