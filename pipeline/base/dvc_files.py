"""What dvc.yaml and dvc.lock say of the parameters, read without DVC, whose import takes seconds."""

from pathlib import Path
from typing import Any

from pipeline.base.errors import PipelineError
from pipeline.base.params import PARAMS, read_document
from pipeline.base.profile import Params


def check_matrix(params: Params, path: Path) -> None:
    """The variants that dvc.yaml fine-tunes are those of the profile.

    Args:
        path: of dvc.yaml; where there is none, nothing is checked.

    Raises:
        PipelineError: a variant is in one of the two only.
    """
    if not path.exists():
        return
    stage = read_document(path).get("stages", {}).get("finetune", {})
    listed = stage.get("matrix", {}).get("variant", list(params.variants))
    for name in [*listed, *params.variants]:
        if (name in listed) != (name in params.variants):
            place = f"{path}: finetune.matrix.variant" if name in listed else "params.yaml: variants"
            other = "params.yaml: variants" if name in listed else f"{path}: finetune.matrix.variant"
            raise PipelineError(f"{place} has {name!r}, {other} has not (profile {params.profile}); make the two agree")


def locked_document(path: Path) -> dict[str, Any] | None:
    """params.yaml as the stage configure last read it, from dvc.lock; None where it never ran."""
    if not path.exists():
        return None
    stages = read_document(path).get("stages", {})
    found: dict[str, Any] = next((stage for name, stage in stages.items() if name.split("@")[0] == "configure"), {})
    document: dict[str, Any] | None = found.get("params", {}).get(str(PARAMS))
    return document if document and "profiles" in document else None
