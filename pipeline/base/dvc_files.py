"""What dvc.yaml and dvc.lock say, read without DVC, whose import takes seconds."""

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.base.errors import PipelineError, did_you_mean
from pipeline.base.params import PARAMS, read_document
from pipeline.base.profile import Params

WRITE_SECONDS = 3.0  # within which DVC has written a file


def dvc_project(folder: Path) -> Path:
    """The nearest folder with a dvc.yaml, upwards from where the outputs go: the study has its own."""
    return next((path for path in (folder, *folder.parents) if (path / "dvc.yaml").exists()), folder)


def check_matrix(params: Params, path: Path) -> None:
    """The variants that dvc.yaml fine-tunes are those of the profile.

    Args:
        path: of dvc.yaml; where there is none, nothing is checked.

    Raises:
        PipelineError: a variant is in one of the two only, or the matrix lists none.
    """
    matrix = read_stages(path).get("finetune", {}).get("matrix")
    if matrix is None:
        return
    place = f"{path}: finetune.matrix.variant"
    listed = _looked_up(matrix.get("variant"), path) if isinstance(matrix, dict) else None
    if not isinstance(listed, list):
        raise PipelineError(f"{place}: expected the list of variants ({', '.join(params.variants)}), got {listed!r}")
    for name in [*listed, *params.variants]:
        if name not in params.variants:
            hint = did_you_mean(str(name), params.variants)
            raise PipelineError(
                f"{place} has {name!r}, params.yaml: variants has not (profile {params.profile}); {hint}"
            )
        if name not in listed:
            raise PipelineError(
                f"params.yaml: variants has {name!r} (profile {params.profile}), {place} has not; make the two agree"
            )


def output_at(path: Path, project: Path) -> str | None:
    """The output of a stage of dvc.yaml that `path` lies in, is, or holds: DVC removes it before the stage runs.

    Args:
        path: without symbolic links.
        project: folder of dvc.yaml.
    """
    root = project.resolve()
    if not path.is_relative_to(root):
        return None
    parts = path.relative_to(root).parts
    for output in _outputs(project / "dvc.yaml"):
        pattern = PurePosixPath(re.sub(r"\$\{[^}]*\}", "*", output)).parts
        if all(fnmatchcase(part, wanted) for part, wanted in zip(parts, pattern, strict=False)):
            return output
    return None


def locked_document(path: Path) -> dict[str, Any] | None:
    """params.yaml as the stage configure last read it, from dvc.lock; None where it never ran."""
    found: dict[str, Any] = next(
        (stage for name, stage in read_stages(path).items() if name.split("@")[0] == "configure"), {}
    )
    document: dict[str, Any] | None = found.get("params", {}).get(str(PARAMS))
    return document if document and "profiles" in document else None


def committed(files: Iterable[Path], project: Path) -> set[Path]:
    """Those of `files` that are as dvc.lock has them, which DVC writes once its cache has them.

    Args:
        files: outputs of stages, there or not.
        project: folder of dvc.yaml.
    """
    recorded = {
        out["path"]: out.get("md5")
        for stage in read_stages(project / "dvc.lock").values()
        for out in stage.get("outs") or []
    }
    return {file for file in files if file.is_file() and recorded.get(os.path.relpath(file, project)) == _md5(file)}


def read_stages(path: Path) -> dict[str, dict[str, Any]]:
    """Name to content of the stages of dvc.yaml or dvc.lock; none where the file is missing.

    Raises:
        PipelineError: the file has no mapping of stages.
    """
    if not path.exists():
        return {}
    stages = _read_whole(path).get("stages") or {}
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise PipelineError(f"{path}: stages: expected a mapping of stages; restore the file, as with `git checkout`")
    return stages


def _read_whole(path: Path) -> dict[str, Any]:
    """The document, once it is whole: DVC writes dvc.lock in place, perhaps for another stage at this moment."""
    deadline = time.monotonic() + WRITE_SECONDS
    while True:
        try:
            return read_document(path)
        except PipelineError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest()


def _looked_up(entry: object, path: Path) -> object:
    """An entry of the dvc.yaml at `path`: `${KEY}` stands for a value in one of the files that its `vars` name."""
    reference = re.fullmatch(r"\$\{([\w.]+)\}", entry) if isinstance(entry, str) else None
    if reference is None:
        return entry
    for name in read_document(path).get("vars") or []:
        found: object = read_document(path.parent / name)
        for key in reference[1].split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if found is not None:
            return found
    return entry


def _outputs(path: Path) -> Iterator[str]:
    for stage in read_stages(path).values():
        for kind in ("outs", "metrics", "plots"):
            for entry in stage.get(kind) or []:
                name = next(iter(entry)) if isinstance(entry, dict) else entry
                yield (PurePosixPath(stage.get("wdir", ".")) / name).as_posix()
