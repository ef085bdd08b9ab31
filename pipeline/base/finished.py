"""Checkpoints of finished trainings: they stay until DVC has committed the weights."""

from pipeline.base.dvc_files import committed, dvc_project
from pipeline.base.workspace import Workspace

FINISHED = ".finished.pt"  # at the end of their names


def remove_committed(space: Workspace, but: str = "") -> None:
    """Delete the checkpoints of finished trainings whose weights DVC has committed.

    Args:
        but: a training whose checkpoint stays.
    """
    finished = {}
    for path in space.checkpoints.rglob(f"*{FINISHED}"):
        training = path.parent.relative_to(space.checkpoints).as_posix()
        if training != but:
            finished[space.models / f"{training}.safetensors"] = path
    if finished:
        for weights in committed(finished, dvc_project(space.folder)):
            finished[weights].unlink(missing_ok=True)
