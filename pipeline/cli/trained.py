"""Which weights of a checkout are those of a profile, by what dvc.lock recorded of them."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.base.dvc_files import dvc_project, read_stages
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace


def trainings(params: Params) -> list[str]:
    """What the trainings of a profile call their weights."""
    return ["pretrain", "classify", *(f"finetune/{name}" for name in params.variants)]


def trained(params: Params, space: Workspace) -> list[str]:
    """Those of `trainings` whose weights are here and were made with the values of `params`.

    DVC recorded the digest of the weights, and the values that their stage and the stages before it read.
    """
    project = dvc_project(space.folder)
    stages = read_stages(project / "dvc.lock")
    makers = {out["path"]: stage for stage in stages.values() for out in stage.get("outs") or []}
    resolved = os.path.relpath(space.params, project)
    values = params.model_dump(mode="json", by_alias=True)
    found = []
    for name in trainings(params):
        file = space.models / f"{name}.safetensors"
        path = os.path.relpath(file, project)
        if file.exists() and path in makers and _recorded(makers[path], path) == _md5(file):
            read = _values_read(path, makers, resolved)
            if all(_value(values, key) == value for key, value in read):
                found.append(name)
    return found


def _values_read(path: str, makers: Mapping[str, Mapping[str, Any]], resolved: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values that the stage that made `path` read, and the stages before it."""
    stage = makers.get(path, {})
    yield from stage.get("params", {}).get(resolved, {}).items()
    for dependency in stage.get("deps") or []:
        yield from _values_read(dependency["path"], makers, resolved)


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _recorded(stage: Mapping[str, Any], path: str) -> str | None:
    return next((out.get("md5") for out in stage["outs"] if out["path"] == path), None)


def _md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest()
