"""The stages of dvc.yaml as a flow runs them: in which order, how often again, and whether there is anything to do."""

import difflib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.base.errors import PipelineError

RETRY_ON = ("killed", "any")


@dataclass(frozen=True)
class StagePlan:
    """One stage of dvc.yaml, and under which conditions it is worth another try (its `meta`)."""

    name: str  # as `dvc repro` takes it, such as finetune@gain
    description: str
    retries: int
    retry_delay: float  # seconds
    retry_on: Literal["killed", "any"]  # any: also after a failure that the stage itself reported


def plan(folder: Path, targets: Sequence[str] = ()) -> list[StagePlan]:
    """The stages that `dvc repro TARGETS` would look at, each after those that it depends on.

    Args:
        folder: a checkout.
        targets: names of stages, a matrix stage with or without its item; none means all of dvc.yaml.

    Raises:
        PipelineError: no DVC repository, an unreadable dvc.yaml, an unknown target, or a `meta` that says something
            else than retries, retry_delay and retry_on.
    """
    from dvc.exceptions import DvcException
    from dvc.repo.reproduce import plan_repro

    try:
        with _repository(folder) as repository:
            graph = repository.index.graph
            stages = [stage for stage in graph.nodes if stage.path_in_repo == "dvc.yaml"]
            named: dict[str, list[Any]] = defaultdict(list)
            for stage in stages:
                for name in {stage.name, stage.name.split("@")[0]}:
                    named[name].append(stage)
            for target in targets:
                if target not in named:
                    raise PipelineError(f"targets: {_unknown(target, list(named))}")
            wanted = [stage for target in targets for stage in named[target]] or stages
            ordered = plan_repro(graph, wanted)
    except DvcException as error:
        raise PipelineError(f"{folder / 'dvc.yaml'}: {' '.join(str(error).split())}") from error
    return [_stage_plan(stage) for stage in ordered]


def is_up_to_date(folder: Path, stage: str) -> bool:
    """Whether `dvc repro --single-item STAGE` would do nothing.

    Raises:
        PipelineError: DVC cannot say, as while another DVC process has the checkout.
    """
    from dvc.exceptions import DvcException

    try:
        with _repository(folder) as repository, repository.lock:
            return not repository.stage.load_one(path=str(folder / "dvc.yaml"), name=stage).changed()
    except DvcException as error:
        raise PipelineError(f"{folder}: {stage}: {' '.join(str(error).split())}") from error


def changes(folder: Path) -> dict[str, str]:
    """What `dvc status` finds: stage to what is new, modified or missing in it, in a few words."""
    with _repository(folder) as repository:
        status: dict[str, Any] = repository.status(targets=[str(folder / "dvc.yaml")])
    return {stage: "; ".join(_reasons(entries)) for stage, entries in status.items()}


def cache_folder(folder: Path) -> Path:
    """Where DVC keeps what the stages of this checkout made."""
    with _repository(folder) as repository:
        return Path(repository.cache.local_cache_dir)


def _repository(folder: Path) -> Any:
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        return Repo(str(folder))
    except NotDvcRepoError:
        raise PipelineError(f"{folder}: no DVC repository; run from a checkout of the project") from None


def _stage_plan(stage: Any) -> StagePlan:
    meta = {"retries": 0, "retry_delay": 0, "retry_on": "killed", **(stage.meta or {})}
    retries, delay, condition = meta.pop("retries"), meta.pop("retry_delay"), meta.pop("retry_on")
    place = f"dvc.yaml: {stage.name}: meta"
    if meta:
        raise PipelineError(f"{place}: unknown key {min(meta)!r}; known keys: retries, retry_delay, retry_on")
    if not (isinstance(retries, int) and retries >= 0 and isinstance(delay, (int, float)) and delay >= 0):
        raise PipelineError(f"{place}: retries is a count and retry_delay are seconds, got {retries!r} and {delay!r}")
    if condition not in RETRY_ON:
        raise PipelineError(f"{place}: retry_on must be one of {', '.join(RETRY_ON)}, got {condition!r}")
    return StagePlan(stage.name, stage.desc or "", retries, float(delay), condition)


def _unknown(target: str, known: list[str]) -> str:
    close = difflib.get_close_matches(target, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"stages: {', '.join(sorted(known))}"
    return f"no stage {target!r} in dvc.yaml; {hint}"


def _reasons(entries: list[Any]) -> list[str]:
    """DVC's status of a stage: [{"changed deps": {"data/voc": "modified"}}, "changed command", ...]."""
    reasons = []
    for entry in entries:
        if isinstance(entry, str):
            reasons.append(entry)
            continue
        for details in entry.values():
            for name, state in details.items():
                if isinstance(state, dict):  # params.yaml: {key: state}
                    reasons += [f"{key} {what}" for key, what in state.items()]
                else:
                    reasons.append(f"{name} {state}")
    return reasons
