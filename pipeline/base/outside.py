"""What a run reads from outside the project: a link to each, so that DVC notices when it changes.

DVC follows the link of a dependency and compares content. A folder of images or an archive that params.yaml names is
therefore copied again after it was changed, and only then.
"""

import os
from pathlib import Path

from pipeline.base.dvc_files import dvc_project, output_at
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
        PipelineError: see `located`; then no link is made.
    """
    entries = outside_files(params)
    targets = {name: located(*entry, space) for name, entry in entries.items() if entry is not None}
    for name, entry in entries.items():
        link = space.outside / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if entry is None:
            if link.is_symlink() or not link.exists():
                link.unlink(missing_ok=True)
                write_text(link, NOTHING)
            continue
        target = targets[name]
        absolute = Path(entry[1]).expanduser().is_absolute()
        text = str(target) if absolute else os.path.relpath(target, link.parent)
        if not link.is_symlink() or str(link.readlink()) != text:
            link.unlink(missing_ok=True)
            link.symlink_to(text)


def located(key: str, text: str, space: Workspace) -> Path:
    """The file or folder that `key` of params.yaml names, without symbolic links.

    Raises:
        PipelineError: it does not exist, is a folder where a file is needed, holds this project, or lies where the
            pipeline or a stage of dvc.yaml removes what it finds.
    """
    try:
        path = Path(text).expanduser()
        exists = path.exists()
    except (RuntimeError, ValueError, OSError) as error:  # no such user, or no possible path
        raise PipelineError(f"params.yaml: {key}: {text!r} is no path ({error}); correct it") from None
    if not exists:
        raise PipelineError(f"params.yaml: {key}: {path} does not exist; correct the path")
    if path.is_dir() and key != "download.path":
        raise PipelineError(f"params.yaml: {key}: {path} is a folder; name the file itself")
    target, project = path.resolve(), dvc_project(space.folder)
    for folder in (space.data.parent, space.models, space.reports, space.checkpoints):
        if target.is_relative_to(folder.resolve()):
            raise PipelineError(
                f"params.yaml: {key}: {path} lies in {folder}, which the pipeline empties; move it elsewhere"
            )
    for folder in (Path.cwd(), space.folder.resolve()):
        if folder.is_relative_to(target):
            raise PipelineError(
                f"params.yaml: {key}: {path} holds this project itself; name the folder of the data alone"
            )
    if (output := output_at(target, project)) is not None:
        raise PipelineError(
            f"params.yaml: {key}: DVC would remove {path}, since {project / 'dvc.yaml'} has the output {output}; move "
            "it elsewhere"
        )
    return target
