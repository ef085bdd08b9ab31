"""How a stage is called: its command line, its parameters, its ranks, and what becomes of its failures."""

import argparse
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import gettempdir
from typing import NoReturn

from pipeline.base.errors import PipelineError
from pipeline.base.params import load_params
from pipeline.base.profile import Params
from pipeline.base.secrets import hide_secrets
from pipeline.base.workspace import Workspace
from pipeline.tracking.tracker import Tracking
from stages.ending import last_line
from stages.launch import (
    LOST_A_RANK,
    end_with_dvc,
    fail,
    is_first_rank,
    launched,
    lost_a_rank,
    run_on_ranks,
    watch_parent,
)

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Unable to allocate")  # torch on GPUs, on CPUs; NumPy


def run_stage(
    name: str, stage: Callable[..., None], *, argument: str = "", on_ranks: bool = False, configures: bool = False
) -> None:
    """Call a stage as the command line says; a failure that the user can act on becomes one line and exit code 1.

    Args:
        stage: called with the parameters, the workspace and, if it takes one, its argument.
        argument: what the stage's own argument is, in a word.
        on_ranks: in a process per device, where params.yaml asks for several.
        configures: the stage reads params.yaml and may be told another profile and seed; all others read what it wrote.
    """
    hide_secrets()
    parser = _Parser(prog=f"python -m stages.{name}")
    if argument:
        parser.add_argument(argument)
    parser.add_argument("--folder", type=Path, default=Path(), help="where inputs and outputs lie")
    if configures:
        parser.add_argument("--profile", help="instead of the profile that params.yaml names")
        parser.add_argument("--seed", type=int, help="instead of the seed that params.yaml names")
    options = vars(parser.parse_args())
    space = Workspace(options["folder"])
    end_with_dvc(name)
    full_name = f"{name}/{options[argument]}" if argument else name
    with _failures_in_one_line(full_name, space):
        if configures:
            params = load_params(profile=options["profile"], seed=options["seed"])
        else:
            params = load_params(space.params)
        if on_ranks and _is_for_ranks(params):
            command = [sys.executable, "-m", f"stages.{name}", *sys.argv[1:]]
            sys.exit(run_on_ranks(full_name, command, params.runtime.devices))
        began = time.monotonic()
        stage(params, space, *([options[argument]] if argument else []))
        if is_first_rank():
            variant = options[argument] if argument else ""
            print(last_line(name, params, space, variant, time.monotonic() - began), flush=True)


def run_training(params: Params, space: Workspace, stage: str, variant: str = "") -> None:
    """One of the three trainings; the first rank sends its record to MLflow."""
    with Tracking() if is_first_rank() else nullcontext() as tracking:
        from stages.train import train  # torch: seconds, in which the sender gets ready

        train(tracking, params, space, stage, variant)


@contextmanager
def _failures_in_one_line(name: str, space: Workspace) -> Iterator[None]:
    try:
        yield
    except PipelineError as error:
        # From a loader's worker process it comes with that process's traceback before it.
        message = str(error).strip().splitlines()[-1].removeprefix("pipeline.base.errors.PipelineError: ")
        fail(f"{name}: error: {message}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = error.filename or _fullest(space).resolve()
            fail(f"{name}: error: {place}: the disk is full; free some space and rerun")
        if error.filename is None:
            raise
        fail(f"{name}: error: {error.filename}: {error.strerror}; correct it and rerun")
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and lost_a_rank(error):
            sys.exit(LOST_A_RANK)  # whoever started the ranks says which one, and why
        reason = (str(error).splitlines() or ["out of memory"])[0]
        if not any(sign in reason for sign in OUT_OF_MEMORY):
            raise
        fail(f"{name}: error: {reason}; lower this stage's batch_size or crop_size, or evaluate.batch_size")
    except KeyboardInterrupt:
        fail(f"{name}: interrupted; run `dvc repro` again to resume")


def _fullest(space: Workspace) -> Path:
    """The folder that has the least room: a failure to write into an open file does not say which file that was."""
    folders = (space.folder, space.data.parent, space.models, space.reports, space.checkpoints, Path(gettempdir()))
    return min((folder for folder in folders if folder.exists()), key=lambda folder: shutil.disk_usage(folder).free)


def _is_for_ranks(params: Params) -> bool:
    """Whether ranks are to be started here; in one that was started, that there are as many as params.yaml says.

    Raises:
        PipelineError: there are not, or they would have to be started on several machines.
    """
    runtime = params.runtime
    if launched():
        watch_parent()
        if (found := int(os.environ["WORLD_SIZE"])) != runtime.num_ranks:
            raise PipelineError(
                f"params.yaml: runtime: {runtime.devices} devices on each of {runtime.num_nodes} nodes make "
                f"{runtime.num_ranks} ranks, but {found} were started; make the two agree"
            )
        return False
    if runtime.num_nodes > 1:
        raise PipelineError(
            f"params.yaml: runtime.num_nodes: {runtime.num_nodes} machines are asked for; start this stage on each of "
            f"them with torchrun --nnodes {runtime.num_nodes} --nproc-per-node {runtime.devices} (docs/scaling.md)"
        )
    return runtime.num_ranks > 1


class _Parser(argparse.ArgumentParser):
    """One line instead of a usage text and a line."""

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        self.exit(2, f"error: {message}; usage: {usage}\n")
