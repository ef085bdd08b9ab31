"""The points of a sweep: which they are, whether they can run, and their scores."""

import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

from pipeline.base.errors import PipelineError
from pipeline.flows.experiments import apply_overrides


def sweep_points(grid: Mapping[str, Sequence[Any]] | None, points: Sequence[Sequence[str]] | None) -> list[list[str]]:
    """Every combination of a grid, or the points as they are.

    Raises:
        PipelineError: both or neither are given.
    """
    if bool(grid) == bool(points):
        raise PipelineError("sweep takes a grid or a list of points, one of the two")
    if points:
        return [list(point) for point in points]
    assert grid is not None
    names = list(grid)
    combinations = itertools.product(*(grid[name] for name in names))
    return [
        [f"{name}={json.dumps(value)}" for name, value in zip(names, values, strict=True)] for values in combinations
    ]


def check_points(points: Sequence[Sequence[str]], profile: str | None) -> None:
    """Every point can be applied to params.yaml: asked of all before the first one trains.

    Raises:
        PipelineError: see `apply_overrides`.
    """
    text = Path("params.yaml").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        for point in points:
            path = Path(folder) / "params.yaml"
            path.write_text(text, encoding="utf-8")
            apply_overrides(path, [*([f"profile={profile}"] if profile else []), *point])


def best_scores(flow_run_id: UUID) -> dict[str, float]:
    """Scores of the best candidate of a point, from the table that its run left with the server.

    The one that begins with `val/` is of validation images, and points should be chosen by it; the others are of test
    images.
    """
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]), key=ArtifactFilterKey(any_=["scores"])
            )
        )
    if not artifacts:
        return {}
    rows = json.loads(str(artifacts[0].data))
    best = next((row for row in rows if row.pop("best")), None)
    return {name: value for name, value in (best or {}).items() if isinstance(value, float)}
