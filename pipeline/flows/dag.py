"""The stages of dvc.yaml as a flow runs them: in which order, how often again, and whether there is anything to do."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from pipeline.base.errors import PipelineError, did_you_mean
from pipeline.base.messages import one_line
from pipeline.base.ranges import Section

ONE_AT_A_TIME = threading.Lock()  # DVC's Python interface is not made for several threads


class BusyError(PipelineError):
    """Another DVC process is in the way, for now."""


class Meta(Section):
    """`meta` of a stage in dvc.yaml: under which conditions a failed stage is worth another try."""

    retries: Annotated[int, Field(ge=0, le=1000)] = 0
    retry_delay: Annotated[float, Field(ge=0.0, le=86_400.0)] = 0.0  # seconds
    retry_on: Literal["killed", "any"] = "killed"  # any: also after a failure that the stage itself reported


@dataclass(frozen=True)
class StagePlan:
    """One stage of dvc.yaml."""

    name: str  # as `dvc repro` takes it, such as finetune@gain
    description: str
    meta: Meta
    after: frozenset[str] = frozenset()  # the stages of dvc.yaml whose outputs it reads


def plan(folder: Path, targets: Sequence[str] = ()) -> list[StagePlan]:
    """The stages that `dvc repro TARGETS` would look at, each after those that it depends on.

    Args:
        folder: a checkout.
        targets: names of stages, a matrix stage with or without its item; none means all of dvc.yaml.

    Raises:
        PipelineError: no DVC repository, an unreadable dvc.yaml, an unknown target, or a `meta` that is no `Meta`.
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
                    raise PipelineError(f"targets: no stage {target!r} in dvc.yaml; {did_you_mean(target, named)}")
            wanted = [stage for target in targets for stage in named[target]] or stages
            ordered = plan_repro(graph, wanted)
    except DvcException as error:
        raise PipelineError(f"{folder / 'dvc.yaml'}: {' '.join(str(error).split())}") from error
    return [_stage_plan(stage, [before for before in graph.successors(stage) if before in stages]) for stage in ordered]


def is_up_to_date(folder: Path, stage: str) -> bool:
    """Whether `dvc repro --single-item STAGE` would do nothing.

    Raises:
        BusyError: another DVC process has the folder, or is at this stage.
        PipelineError: DVC cannot say.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    try:
        with ONE_AT_A_TIME, _repository(folder) as repository, repository.lock:
            return not repository.stage.load_one(path=str(folder / "dvc.yaml"), name=stage).changed()
    except LockError as error:
        raise BusyError(f"{folder}: {stage}: another DVC process is at it") from error
    except DvcException as error:
        raise PipelineError(f"{folder}: {stage}: {' '.join(str(error).split())}") from error


def changes(folder: Path) -> dict[str, str]:
    """What `dvc status` finds: stage to what is new, modified or missing in it, in a few words.

    Raises:
        PipelineError: no DVC repository.
    """
    with _repository(folder) as repository:
        status: dict[str, Any] = repository.status(targets=[str(folder / "dvc.yaml")])
    return {stage: "; ".join(_reasons(entries)) for stage, entries in status.items()}


def share_cache(checkout: Path, clone: Path) -> None:
    """Let a clone use the DVC cache of a checkout, by links where the disk has them: data is there once.

    A hard link cannot be written through, as DVC makes its files read-only; outputs are removed before a stage runs.
    """
    with _repository(checkout) as repository:
        cache = repository.cache.local_cache_dir
    with _repository(clone) as repository, repository.config.edit("local") as config:
        config.setdefault("cache", {}).update({"dir": str(cache), "type": "reflink,hardlink,copy"})


def push_uncached(folder: Path, stage: str) -> None:
    """Send the outputs of a stage that have `cache: false` to the default remote, where the run-cache needs them too.

    `dvc push --run-cache` (3.67) sends the run without them, so that no other machine can restore it.

    Raises:
        PipelineError: the remote does not take them.
    """
    from dvc.exceptions import DvcException

    try:
        with ONE_AT_A_TIME, _repository(folder) as repository:
            found = repository.stage.load_one(path=str(folder / "dvc.yaml"), name=stage)
            objects = {out.hash_info for out in found.outs if not out.use_cache}
            if objects and (left := repository.cloud.push(objects).failed):
                raise PipelineError(f"{folder}: {stage}: the DVC remote did not take {len(left)} files; push again")
    except DvcException as error:
        raise PipelineError(f"{folder}: {stage}: {' '.join(str(error).split())}") from error


def _repository(folder: Path) -> Any:
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        return Repo(str(folder))
    except NotDvcRepoError:
        raise PipelineError(f"{folder}: no DVC repository; run from a checkout of the project") from None


def _stage_plan(stage: Any, before: list[Any]) -> StagePlan:
    try:
        meta = Meta.model_validate(stage.meta or {})
    except ValidationError as error:
        key, message = one_line(error, Meta)
        raise PipelineError(": ".join(filter(None, ("dvc.yaml", stage.name, "meta", key, message)))) from None
    return StagePlan(stage.name, stage.desc or "", meta, frozenset(found.name for found in before))


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
