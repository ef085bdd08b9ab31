"""Whether another process of this machine still runs."""

import psutil


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs: it has not ended, its id has not gone to another one, and nobody has yet to read its end.

    Args:
        process: as it was looked up; psutil remembers when it started.
    """
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
