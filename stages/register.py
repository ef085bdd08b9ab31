"""Make the best guided variant the challenger in the model registry."""

import json

from pipeline.config import Params
from pipeline.data.manifest import data_digest, read_manifest
from pipeline.files import digest_file, write_json
from pipeline.registry import TEST_DATA_TAG, register_model, select_variant
from stages import Workspace, run_stage

TRAINING_SPLITS = ("train", "val")


def register(params: Params, space: Workspace) -> None:
    """reports/evaluate/metrics.json and models/ to a model version; reports/register/challenger.json says which."""
    options = params.profile.register_
    metrics = json.loads((space.reports / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    variant = select_variant(metrics, options.candidates, options.metric)
    weights = space.models / "finetune" / f"{variant}.safetensors"
    digest = digest_file(weights)
    rows = read_manifest(space.manifest)
    tags = {
        "variant": variant,
        "profile": params.profile_name,
        "data_digest": data_digest(rows),
        TEST_DATA_TAG: data_digest(row for row in rows if row.split not in TRAINING_SPLITS),
    }
    version = register_model(
        weights,
        digest,
        registered_model_name=options.registered_model_name,
        run_name=f"{variant}-seed{params.seed}",
        tags=tags,
        metrics={name: value for group in metrics[variant].values() for name, value in group.items()},
    )
    # No version number in here: it is the registry's, and would differ wherever the same model is registered.
    content = {"registered_model_name": options.registered_model_name, "weights_sha256": digest, **tags}
    write_json(space.reports / "register" / "challenger.json", {**content, "metrics": metrics[variant]})
    print(f"register: {variant} is version {version} of {options.registered_model_name}, alias challenger", flush=True)


if __name__ == "__main__":
    run_stage("register", register)
