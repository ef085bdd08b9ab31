"""The steps of dvc.yaml, each a `python -m stages.NAME` that only wires the pipeline together."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import PipelineError

DATA = Path("data/voc")
MANIFEST = Path("data/manifest.csv")
MODELS = Path("models")
REPORTS = Path("reports")


def run_stage(name: str, stage: Callable[..., None], *arguments: str) -> None:
    """Call a stage; a failure that the user can act on becomes one line on standard error and exit code 1."""
    try:
        stage(*arguments)
    except PipelineError as error:
        sys.exit(f"{name}: error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f"{name}: error: {error.filename or 'output'}: the disk is full; free some space and rerun")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run `dvc repro` again to resume")
