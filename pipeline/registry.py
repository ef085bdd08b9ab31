"""The model registry: versions known by the digest of their weights. MLflow client only, no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.sender import connect, find_run
from pipeline.tracking import WEIGHTS_TAG

CHALLENGER = "challenger"


def select_variant(metrics: Mapping[str, Mapping[str, Mapping[str, float]]], candidates: list[str], metric: str) -> str:
    """The candidate with the highest `metric`, the first of equals.

    Args:
        metrics: variant to group to name to value, as in reports/evaluate/metrics.json.

    Raises:
        PipelineError: a candidate was not evaluated or lacks the metric.
    """
    scores = {}
    for variant in candidates:
        values = {name: value for group in metrics.get(variant, {}).values() for name, value in group.items()}
        if metric not in values:
            known = ", ".join(values) or "nothing; it was not evaluated"
            raise PipelineError(f"params.yaml: register.metric: {metric!r} is unknown for {variant}, which has {known}")
        scores[variant] = values[metric]
    return max(candidates, key=lambda variant: scores[variant])


def register_model(
    weights: Path, weights_sha256: str, *, registered_model_name: str, run_name: str, tags: Mapping[str, str]
) -> str:
    """Make `weights` a model version with the alias challenger; weights registered before keep their version.

    The version hangs on the run that trained the weights, or on a new run if the server does not know it.

    Returns:
        The version number.

    Raises:
        PipelineError: the tracking server does not answer or refuses.
    """
    from mlflow.exceptions import MlflowException

    try:
        client, experiment_id = connect()
        versions = client.search_model_versions(f"name = '{registered_model_name}'")
        version = next((v.version for v in versions if v.tags.get(WEIGHTS_TAG) == weights_sha256), None)
        if version is None:
            run_id = find_run(client, experiment_id, weights_sha256)
            run_id = run_id or client.create_run(experiment_id, run_name=run_name).info.run_id
            version = _log_version(run_id, weights, registered_model_name)
            for name, value in {**tags, WEIGHTS_TAG: weights_sha256}.items():
                client.set_model_version_tag(registered_model_name, version, name, value)
        client.set_registered_model_alias(registered_model_name, CHALLENGER, version)
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PipelineError(
            f"the model registry refused {registered_model_name}: {reason}; check MLFLOW_TRACKING_URI"
        ) from error
    return str(version)


def _log_version(run_id: str, weights: Path, registered_model_name: str) -> str:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    package = Path(__file__).parent
    with mlflow.start_run(run_id=run_id):
        info: Any = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "serving.py"),
            artifacts={"weights": str(weights)},
            code_paths=[str(package)],
            signature=ModelSignature(inputs=Schema([ColSpec(DataType.string, "image")])),
            registered_model_name=registered_model_name,
            pip_requirements=["mlflow", "torch", "torchvision", "numpy", "pandas", "pillow", "safetensors"],
        )
    return str(info.registered_model_version)
