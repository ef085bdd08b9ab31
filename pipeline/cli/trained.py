"""Which weights of a checkout are those of a profile, by what dvc.lock recorded of them."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.base.dvc_files import committed, dvc_project, read_stages
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
    files = {space.models / f"{name}.safetensors": name for name in trainings(params)}
    here = committed(files, project)
    return [
        name
        for file, name in files.items()
        if file in here
        and all(
            _value(values, key) == value
            for key, value in _values_read(os.path.relpath(file, project), makers, resolved)
        )
    ]


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
