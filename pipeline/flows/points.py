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
from prefect.client.schemas.sorting import ArtifactSort

from pipeline.base.errors import PipelineError
from pipeline.base.params import PARAMS, read_document
from pipeline.flows.experiments import check_overrides
from pipeline.flows.workers import PAGE, pages


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
        PipelineError: see `prepared_experiment`.
    """
    document, chosen = read_document(PARAMS), [f"profile={profile}"] if profile else []
    with tempfile.TemporaryDirectory() as folder:
        for point in points:
            check_overrides(document, [*chosen, *point], Path(folder))


def best_scores(flow_run_ids: Sequence[UUID]) -> dict[UUID, dict[str, float]]:
    """Scores of the best candidate of each point, from the tables that the runs left with the server.

    The one that begins with `val/` is of validation images, and points should be chosen by it; the others are of test
    images.
    """
    found: dict[UUID, dict[str, float]] = {}
    with get_client(sync_client=True) as client:
        for page in pages(flow_run_ids):
            of_runs, named = ArtifactFilterFlowRunId(any_=page), ArtifactFilterKey(any_=["scores"])
            wanted = ArtifactFilter(flow_run_id=of_runs, key=named)
            # A run that was tried again has left several, the newest first.
            for offset in itertools.count(step=PAGE):
                answer = client.read_artifacts(
                    artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC, offset=offset, limit=PAGE
                )
                for artifact in answer:
                    if artifact.flow_run_id is not None:
                        found.setdefault(artifact.flow_run_id, _of_best(json.loads(str(artifact.data))))
                if len(answer) < PAGE:
                    break
    return found


def _of_best(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    best = next((row for row in rows if row["best"]), {})
    return {name: value for name, value in best.items() if isinstance(value, float)}
