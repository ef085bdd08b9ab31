"""Make the best guided variant the challenger in the model registry."""

import json

from pipeline.config import Params
from pipeline.data.manifest import data_digest, read_manifest
from pipeline.files import digest_file, write_json
from pipeline.registry import register_model, select_variant
from stages import Workspace, run_stage


def register(params: Params, space: Workspace) -> None:
    """reports/evaluate/metrics.json and models/ to a model version; reports/register/challenger.json says which."""
    options = params.profile.register_
    metrics = json.loads((space.reports / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    variant = select_variant(metrics, options.candidates, options.metric)
    weights = space.models / "finetune" / f"{variant}.safetensors"
    digest = digest_file(weights)
    rows = read_manifest(space.manifest)
    tags = {"variant": variant, "profile": params.profile_name, "data_digest": data_digest(rows)}
    version = register_model(
        weights,
        digest,
        registered_model_name=options.registered_model_name,
        run_name=f"{variant}-seed{params.seed}",
        tags=tags,
    )
    # No version number in here: it is the registry's, and would differ wherever the same model is registered.
    content = {"registered_model_name": options.registered_model_name, "weights_sha256": digest, **tags}
    write_json(space.reports / "register" / "challenger.json", {**content, "metrics": metrics[variant]})
    print(f"register: {variant} is version {version} of {options.registered_model_name}, alias challenger", flush=True)


if __name__ == "__main__":
    run_stage("register", register)
