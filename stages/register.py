"""Make the best guided variant the challenger in the model registry."""

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

from pipeline.base.files import digest_file, write_json, write_text
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.data.manifest import data_digest, read_manifest
from pipeline.data.voc import read_class_names
from pipeline.release.model_card import model_card
from pipeline.release.registry import TEST_DATA_TAG, flat_scores, register_model, select_variant
from stages.run import run_stage

TRAINING_SPLITS = ("train", "val")


def register(params: Params, space: Workspace) -> None:
    """reports/evaluate and models/ to a model version; reports/register has its card and says which it is."""
    options = params.register_
    metrics = json.loads((space.reports / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    variant = select_variant(metrics, options.candidates, options.metric)
    weights = space.models / "finetune" / f"{variant}.safetensors"
    digest = digest_file(weights)
    rows = read_manifest(space.manifest)
    tags = {
        "variant": variant,
        "profile": params.profile,
        "seed": str(params.seed),
        "data_digest": data_digest(rows),
        TEST_DATA_TAG: data_digest(row for row in rows if row.split not in TRAINING_SPLITS),
        "dvc_md5": hashlib.md5(weights.read_bytes(), usedforsecurity=False).hexdigest(),  # as in dvc.lock
    }
    card = model_card(
        params,
        variant,
        read_class_names(space.data),
        Counter(row.split for row in rows),
        _intervals(space.reports / "evaluate" / "tables" / "intervals.csv", variant),
    )
    version = register_model(
        weights,
        digest,
        registered_model_name=options.registered_model_name,
        run_name=f"{variant}-seed{params.seed}",
        tags=tags,
        metrics=flat_scores(metrics[variant]),
        description=card,
    )
    # No version number in here: it is the registry's, and would differ wherever the same model is registered.
    content = {"registered_model_name": options.registered_model_name, "weights_sha256": digest, **tags}
    write_json(space.reports / "register" / "challenger.json", {**content, "metrics": metrics[variant]})
    write_text(space.reports / "register" / "model_card.md", card + "\n")
    print(f"register: {variant} is version {version} of {options.registered_model_name}, alias challenger", flush=True)


def _intervals(path: Path, variant: str) -> dict[str, tuple[float, float, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == variant]
    return {row["score"]: (float(row["estimate"]), float(row["low_95"]), float(row["high_95"])) for row in rows}


if __name__ == "__main__":
    run_stage("register", register)
