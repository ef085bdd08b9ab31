"""What the registry and the runs should hold after the last `dvc repro`, and what of it they lack. No torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.base.files import digest_file
from pipeline.base.profile import Params
from pipeline.base.workspace import PRETRAINED, Workspace
from pipeline.release.registry import registry_errors, version_of
from pipeline.report.tables import tracked_metrics
from pipeline.tracking.rebuilt import Remains, rebuild_run
from pipeline.tracking.sender import send_waiting
from pipeline.tracking.server import connect
from pipeline.tracking.tracker import WEIGHTS_TAG


def mend_runs(params: Params, space: Workspace) -> list[str]:
    """Make the runs again that MLflow lacks, as far as models/ and reports/ tell of them; the names of the trainings.

    What waits in .tracking is sent first: it is the whole record.

    Raises:
        PipelineError: the tracking server does not answer or refuses.
    """
    made = []
    with registry_errors("the runs"):
        client, experiment_id = connect()
        send_waiting()
        for name, remains in _remains(params, space):
            if rebuild_run(client, experiment_id, remains):
                made.append(name)
    return made


def registered_version(space: Workspace) -> str | None:
    """The version with the weights that reports/register names as challenger; None where either is missing.

    Raises:
        PipelineError: the registry does not answer or refuses.
    """
    path = space.reports / "register" / "challenger.json"
    if not path.exists():
        return None
    chosen = json.loads(path.read_text(encoding="utf-8"))
    name = chosen["registered_model_name"]
    with registry_errors(name):
        client, _ = connect()
        return version_of(client, name, chosen[WEIGHTS_TAG])


def _remains(params: Params, space: Workspace) -> Iterator[tuple[str, Remains]]:
    """Name of each training whose weights are here, and what is left of it."""
    scores = _scores(space.reports / "evaluate" / "metrics.json")
    pictures = space.reports / "evaluate" / "pictures"
    models = {"pretrain": "", "classify": PRETRAINED, **{f"finetune/{name}": name for name in params.variants}}
    for name, model in models.items():
        stage, _, variant = name.partition("/")
        weights = space.models / f"{name}.safetensors"
        if weights.exists():
            tags = {"stage": stage, "variant": variant, "profile": params.profile, "seed": str(params.seed)}
            yield (
                name,
                Remains(
                    run_name=f"{variant or stage}-seed{params.seed}",
                    weights_sha256=digest_file(weights),
                    report=space.reports / name,
                    pictures=sorted((pictures / model).glob("*.png")) if model else [],
                    tags={key: value for key, value in tags.items() if value},
                    params=_values(params, stage, variant),
                    scores=tracked_metrics(scores.get(model, {})),
                ),
            )


def _values(params: Params, stage: str, variant: str) -> dict[str, Any]:
    """The parameters of a training under the names that its run had, without the addresses of imported weights."""
    options = getattr(params, stage).model_dump(mode="json", exclude={"weights"})
    if variant:
        options |= {
            "loss_weights": params.variants[variant].loss_weights,
            "attention": params.attention_of(variant).model_dump(mode="json"),
        }
    shared = {"seed": params.seed, "profile": params.profile}
    return {**shared, "runtime": params.runtime.model_dump(), "model": params.model.model_dump(), stage: options}


def _scores(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
