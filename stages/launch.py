"""A training on several devices of one machine: a process per device, all of which end with the first that fails.

torch's elastic agent starts the ranks and watches them. The first rank speaks for all; what the others print goes to a
file that is read only if one of them fails alone. A rank that can say why it fails leaves that to the process that
started it, so that a failure of all ranks is said once.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from pipeline.base.cores import usable_cores

POLL_SECONDS = 1.0
LOST_A_RANK = 75  # exit status of a rank that ended because another one had
LAST_WORDS = "RANKS_LAST_WORDS"  # variable of the environment: the folder in which a rank leaves why it fails
DVC_STAGE = "DVC_STAGE"  # variable of the environment in which DVC names the stage
LOST_SIGNS = ("gloo", "NCCL", "Connection closed", "Connection reset")


def launched() -> bool:
    """Whether this process is a rank already, started by `run_on_ranks` or by torchrun."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first_rank() -> bool:
    """Whether this process is the one that writes; a training on one device has no other."""
    return int(os.environ.get("RANK", "0")) == 0 if launched() else True


def fail(line: str) -> NoReturn:
    """End this process with exit status 1 and `line`, which `run_on_ranks` says for a rank that it started."""
    if launched() and LAST_WORDS in os.environ:
        with suppress(OSError):  # of a full disk: then the rank says it itself
            (Path(os.environ[LAST_WORDS]) / os.environ["RANK"]).write_text(line)
            sys.exit(1)
    sys.exit(line)


def run_on_ranks(name: str, command: Sequence[str], num_ranks: int) -> int:
    """Run `command` once per device of this machine and wait; the exit status, 128 + signal where a signal ended one.

    Args:
        name: of the stage, to begin an error with.
        command: a program and its arguments.

    Raises:
        KeyboardInterrupt: the ranks have been ended by it.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it reports what is reported below
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // num_ranks)))
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        os.environ[LAST_WORDS] = folder
        silent = dict.fromkeys(range(1, num_ranks), Std.ALL)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_ranks,
            run_id=name,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,  # the stage is run again as a whole, from its checkpoint
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=silent),
        )
        try:
            elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as error:
            return _report(name, error.failures, num_ranks, Path(folder))
        except SignalException as error:  # the ranks have been ended
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            return 128 + int(error.sigval)
    return 0


def watch_parent() -> None:
    """End this rank when the process that started it is gone; nobody would else end it."""
    parent = os.getppid()
    _when_gone(lambda: os.getppid() == parent, lambda: os._exit(LOST_A_RANK))


def end_with_dvc(name: str) -> None:
    """End this stage, if DVC started it, when DVC is gone: a rerun would find it at work on the same files.

    SIGINT reaches both; SIGTERM and kill -9 reach DVC alone, and between the two there may be a shell.

    Args:
        name: of the stage.
    """
    if DVC_STAGE not in os.environ or launched():
        return
    import psutil

    from pipeline.base.processes import is_alive

    dvc = next((process for process in psutil.Process().parents() if not _is_of_stage(process)), None)

    def end() -> None:
        with suppress(OSError):
            line = f"{name}: DVC, which started it, is gone; run `dvc repro` again to resume"
            print(line, file=sys.stderr, flush=True)
        os._exit(1)

    if dvc is not None:
        _when_gone(lambda: is_alive(dvc), end)


def _is_of_stage(process: Any) -> bool:
    """Whether a process has what DVC sets for the commands of a stage, as a shell between DVC and a stage has."""
    import psutil

    try:
        return DVC_STAGE in process.environ()
    except psutil.Error:
        return False


def _when_gone(lives: Callable[[], bool], end: Callable[[], object]) -> None:
    def watch() -> None:
        while lives():
            time.sleep(POLL_SECONDS)
        end()

    threading.Thread(target=watch, daemon=True).start()


def lost_a_rank(error: RuntimeError) -> bool:
    """Whether a collective operation failed because another rank is gone."""
    return launched() and any(sign in str(error) for sign in LOST_SIGNS)


def _report(name: str, failures: Mapping[int, Any], num_ranks: int, folder: Path) -> int:
    words = {int(path.name): path for path in folder.iterdir() if path.is_file() and path.stat().st_size}
    if words:
        rank = min(words)
        said_by = f" (rank {rank} of {num_ranks})" if rank > 0 else ""
        print(words[rank].read_text() + said_by, file=sys.stderr, flush=True)
        return 1
    # Those that the agent stopped, and those that lost the one that failed, are not the cause.
    consequences = (LOST_A_RANK, -signal.SIGTERM)
    rank, failure = min(failures.items(), key=lambda item: (item[1].exitcode in consequences, item[1].timestamp))
    if failure.exitcode < 0:
        print(
            f"{name}: error: rank {rank} of {num_ranks} was ended by {signal.Signals(-failure.exitcode).name}, perhaps "
            "for want of memory, and the others with it; run it again to resume after the last finished epoch",
            file=sys.stderr,
            flush=True,
        )
        return 128 - int(failure.exitcode)
    if failure.exitcode == LOST_A_RANK:
        print(
            f"{name}: error: the {num_ranks} ranks lost one another, and none of them says why; run it again to resume "
            "after the last finished epoch",
            file=sys.stderr,
            flush=True,
        )
    elif rank > 0:
        said = [line for path in folder.rglob(f"{rank}/stderr.log") for line in path.read_text().splitlines() if line]
        line = said[-1] if said else f"{name}: error: exit status {failure.exitcode}"
        print(f"{line} (rank {rank} of {num_ranks})", file=sys.stderr, flush=True)
    return int(failure.exitcode)
