"""What a run reads from outside the project: a link to each, so that DVC notices when it changes.

DVC follows the link of a dependency and compares content. A folder of images or an archive that params.yaml names is
therefore copied again after it was changed, and only then.
"""

import os
from pathlib import Path

from pipeline.base.errors import PipelineError
from pipeline.base.files import write_text
from pipeline.base.profile import Params
from pipeline.base.sections import FolderData, Voc2012Data
from pipeline.base.workspace import Workspace

NOTHING = "Nothing outside the project is read here.\n"


def outside_files(params: Params) -> dict[str, tuple[str, str] | None]:
    """What each link stands for: the key of params.yaml and the path that it names, or None."""
    found: dict[str, tuple[str, str] | None] = {"data": None, "sbd": None, "weights": None}
    options, weights = params.download, params.pretrain.weights.file
    if isinstance(options, FolderData):
        found["data"] = ("download.path", options.path)
    if isinstance(options, Voc2012Data):
        if options.archive.path is not None:
            found["data"] = ("download.archive.path", options.archive.path)
        if options.sbd is not None and options.sbd.path is not None and options.train_split == "trainaug":
            found["sbd"] = ("download.sbd.path", options.sbd.path)
    if weights is not None and weights.path is not None:
        found["weights"] = ("pretrain.weights.file.path", weights.path)
    return found


def link_outside_files(params: Params, space: Workspace) -> None:
    """Make the links below reports/configure/outside, or files that say that there is nothing to link to.

    Raises:
        PipelineError: a path that params.yaml names does not exist, or lies where the pipeline writes.
    """
    for name, entry in outside_files(params).items():
        link = space.outside / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if entry is None:
            if link.is_symlink() or not link.exists():
                link.unlink(missing_ok=True)
                write_text(link, NOTHING)
            continue
        target = _checked(*entry, space)
        text = str(target) if Path(entry[1]).expanduser().is_absolute() else os.path.relpath(target, link.parent)
        if not link.is_symlink() or str(link.readlink()) != text:
            link.unlink(missing_ok=True)
            link.symlink_to(text)


def _checked(key: str, text: str, space: Workspace) -> Path:
    path = Path(text).expanduser()
    if not path.exists():
        raise PipelineError(f"params.yaml: {key}: {path} does not exist; correct the path")
    target = path.resolve()
    for folder in (space.data.parent, space.models, space.reports, space.checkpoints):
        if target.is_relative_to(folder.resolve()):
            raise PipelineError(
                f"params.yaml: {key}: {path} lies in {folder}, which the pipeline empties; move it elsewhere"
            )
    if Path.cwd().is_relative_to(target):
        raise PipelineError(f"params.yaml: {key}: {path} holds this project itself; name the folder of the data alone")
    return target
