"""The steps of dvc.yaml, each a `python -m stages.NAME` that only wires the pipeline together.

Every step takes `--folder`, where its inputs and outputs lie, and `--profile` and `--seed`, instead of those that
params.yaml names: study/dvc.yaml runs the same steps once per seed, each seed in a folder of its own.
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pipeline.base.errors import PipelineError
from pipeline.base.params import Params, load_params
from stages.launch import LOST_A_RANK, launched, lost_a_rank, run_on_ranks, watch_parent

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Unable to allocate")  # torch on GPUs, on CPUs; NumPy


@dataclass(frozen=True)
class Workspace:
    """Where one run of the pipeline keeps what its steps hand on."""

    folder: Path

    @property
    def data(self) -> Path:
        """The data set in VOC layout."""
        return self.folder / "data" / "voc"

    @property
    def initial_weights(self) -> Path:
        """A folder with the file of imported weights, or empty."""
        return self.folder / "data" / "weights"

    @property
    def manifest(self) -> Path:
        """One row per image."""
        return self.folder / "data" / "manifest.csv"

    @property
    def models(self) -> Path:
        """Weights, STAGE.safetensors or finetune/VARIANT.safetensors."""
        return self.folder / "models"

    @property
    def reports(self) -> Path:
        """Curves, tables and pictures, a folder per stage."""
        return self.folder / "reports"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of interrupted trainings; outside every DVC output."""
        return self.folder / "checkpoints"


def run_stage(name: str, stage: Callable[..., None], *, argument: str = "", on_ranks: bool = False) -> None:
    """Call a stage as the command line says; a failure that the user can act on becomes one line and exit code 1.

    Args:
        stage: called with the parameters, the workspace and, if it takes one, its argument.
        argument: what the stage's own argument is, in a word.
        on_ranks: in a process per device, where params.yaml asks for several.
    """
    parser = _Parser(prog=f"python -m stages.{name}")
    if argument:
        parser.add_argument(argument)
    parser.add_argument("--folder", type=Path, default=Path(), help="where inputs and outputs lie")
    parser.add_argument("--profile", help="instead of the profile that params.yaml names")
    parser.add_argument("--seed", type=int, help="instead of the seed that params.yaml names")
    options = vars(parser.parse_args())
    try:
        params: Params = load_params(profile=options["profile"], seed=options["seed"])
        if on_ranks and _is_for_ranks(params):
            command = [sys.executable, "-m", f"stages.{name}", *sys.argv[1:]]
            sys.exit(run_on_ranks(name, command, params.profile.runtime.devices))
        stage(params, Workspace(options["folder"]), *([options[argument]] if argument else []))
    except PipelineError as error:
        # From a loader's worker process it comes with that process's traceback before it.
        message = str(error).strip().splitlines()[-1].removeprefix("pipeline.base.errors.PipelineError: ")
        sys.exit(f"{name}: error: {message}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sys.exit(f"{name}: error: {error.filename or 'output'}: the disk is full; free some space and rerun")
        if error.filename is None:
            raise
        sys.exit(f"{name}: error: {error.filename}: {error.strerror}; correct it and rerun")
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and lost_a_rank(error):
            sys.exit(LOST_A_RANK)  # whoever started the ranks says which one, and why
        reason = (str(error).splitlines() or ["out of memory"])[0]
        if not any(sign in reason for sign in OUT_OF_MEMORY):
            raise
        sys.exit(f"{name}: error: {reason}; lower this stage's batch_size or crop_size, or evaluate.batch_size")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run `dvc repro` again to resume")


def _is_for_ranks(params: Params) -> bool:
    """Whether ranks are to be started here; in one that was started, that there are as many as params.yaml says.

    Raises:
        PipelineError: there are not, or they would have to be started on several machines.
    """
    runtime = params.profile.runtime
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
