"""The model registry: versions known by the digest of their weights. MLflow client only, no torch."""

import base64
import io
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import PipelineError, printable
from pipeline.base.files import digest_file
from pipeline.base.secrets import cleaned, without_secrets
from pipeline.release.facts import VersionFacts
from pipeline.tracking.provenance import source_tags
from pipeline.tracking.server import connect, find_run
from pipeline.tracking.tracker import WEIGHTS_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHALLENGER = "challenger"
CHAMPION = "champion"
SERVING_REQUIREMENTS = (
    "mlflow",
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "pyyaml",
    "safetensors",
)
SCORE = "test/"  # prefix of a score's name in MLflow, of a run and of a version alike


def select_variant(validation: Mapping[str, Mapping[str, float]], candidates: list[str], metric: str) -> str:
    """The candidate with the highest `metric` on validation images, the first of equals.

    Args:
        validation: variant to score to value, as in reports/evaluate/validation.json.

    Raises:
        PipelineError: a candidate was not evaluated, or its metric is missing or not a number.
    """
    scores = {}
    for variant in candidates:
        values = validation.get(variant, {})
        if metric not in values:
            known = ", ".join(values) or "nothing; it was not evaluated"
            raise PipelineError(f"params.yaml: register.metric: {metric!r} is unknown for {variant}, which has {known}")
        if not math.isfinite(values[metric]):
            raise PipelineError(
                f"params.yaml: register.metric: {metric} of {variant} is {values[metric]} on the validation images; "
                "choose another score"
            )
        scores[variant] = values[metric]
    return max(candidates, key=lambda variant: scores[variant])


def explain_choice(validation: Mapping[str, Mapping[str, float]], candidates: list[str], metric: str) -> str:
    """By what `select_variant` chose, in percent: "attention_iou on validation images: gain 12.1, gain_ext 44.0"."""
    values = ", ".join(f"{variant} {100 * validation[variant][metric]:.1f}" for variant in candidates)
    return f"{metric} on validation images: {values}"


def register_model(weights: Path, registered_model_name: str, facts: VersionFacts) -> str:
    """Make `weights` a model version with the alias challenger; weights registered before keep their version.

    The version belongs to the run that trained the weights, or to a new run if the server does not know that one. What
    an earlier registration of the same weights said is replaced.

    Returns:
        The version number.

    Raises:
        PipelineError: the tracking server does not answer or refuses.
    """
    digest = facts.tags[WEIGHTS_TAG]
    with registry_errors(registered_model_name):
        client, experiment_id = connect()
        version = version_of(client, registered_model_name, digest)
        if version is None:
            run_id = find_run(client, experiment_id, digest)
            run_id = run_id or client.create_run(experiment_id, run_name=facts.run_name).info.run_id
            version = _log_version(run_id, weights, registered_model_name, facts.page)
        client.update_model_version(registered_model_name, version, without_secrets(facts.description))
        for name, value in cleaned({**source_tags(), **facts.tags}).items():
            client.set_model_version_tag(registered_model_name, version, name, value)
        _log_scores(client, client.get_model_version(registered_model_name, version), facts.scores)
        client.set_registered_model_alias(registered_model_name, CHALLENGER, version)
    return str(version)


def find_runs(weights: Mapping[str, Path]) -> tuple[str, dict[str, str]]:
    """The runs that made some weights.

    Args:
        weights: name to safetensors file.

    Returns:
        Id of the experiment, and name to run id; names without a run are left out.

    Raises:
        PipelineError: the tracking server does not answer or refuses.
    """
    with registry_errors("the search for runs"):
        client, experiment_id = connect()
        found = {name: find_run(client, experiment_id, digest_file(path)) for name, path in weights.items()}
    return experiment_id, {name: run_id for name, run_id in found.items() if run_id is not None}


def download_weights(registered_model_name: str, alias: str, folder: Path) -> Path:
    """The safetensors file of the version with `alias`, below `folder`.

    Raises:
        PipelineError: no version has the alias, or the registry does not answer.
    """
    return next(download_model(registered_model_name, alias, folder).glob("artifacts/**/*.safetensors"))


def download_model(registered_model_name: str, alias: str, folder: Path) -> Path:
    """The version with `alias` as MLflow keeps it, its code included, below `folder`.

    Raises:
        PipelineError: no version has the alias, or the registry does not answer.
    """
    with registry_errors(f"{registered_model_name}@{alias}"):
        client, _ = connect()
        from mlflow.artifacts import download_artifacts

        if version_with_alias(client, registered_model_name, alias) is None:
            raise PipelineError(_without_alias(client, registered_model_name, alias))
        place = download_artifacts(artifact_uri=f"models:/{registered_model_name}@{alias}", dst_path=str(folder))
    return Path(place)


def present_aliases(registered_model_name: str) -> list[str]:
    """CHAMPION and CHALLENGER, those of them that some version has.

    Raises:
        PipelineError: neither is there, or the registry does not answer.
    """
    with registry_errors(registered_model_name):
        client, _ = connect()
        aliases = (CHAMPION, CHALLENGER)
        present = [a for a in aliases if version_with_alias(client, registered_model_name, a) is not None]
        if not present:
            raise PipelineError(_without_alias(client, registered_model_name, CHAMPION))
    return present


def version_of(client: "MlflowClient", registered_model_name: str, weights_sha256: str) -> str | None:
    """The version that has these weights; None if none has."""
    versions = client.search_model_versions(f"name = '{registered_model_name}'")
    return next((str(v.version) for v in versions if v.tags.get(WEIGHTS_TAG) == weights_sha256), None)


def version_with_alias(client: "MlflowClient", registered_model_name: str, alias: str) -> Any:
    """The model version with an alias, or None."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

    try:
        return client.get_model_version_by_alias(registered_model_name, alias)
    except MlflowException as error:
        if error.error_code in map(ErrorCode.Name, (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)):
            return None
        raise


def no_such_model(registered_model_name: str) -> str:
    """What to say where the registry has no model of this name."""
    return (
        f"the model registry has no {registered_model_name}; `gain register` registers the last one that was trained, "
        "`dvc repro` trains one"
    )


def _without_alias(client: "MlflowClient", registered_model_name: str, alias: str) -> str:
    models = client.search_registered_models(f"name = '{registered_model_name}'")
    if not models:
        return no_such_model(registered_model_name)
    present = sorted(models[0].aliases)
    if alias == CHAMPION and CHALLENGER in present:
        return f"{registered_model_name} has no champion; run `gain promote`, or --alias {CHALLENGER}"
    if present:
        return f"{registered_model_name} has no version with the alias {alias}; say --alias {' or '.join(present)}"
    return f"{registered_model_name} has no version with the alias {alias}; run `gain register`, then `gain promote`"


def version_scores(client: "MlflowClient", version: Any) -> dict[str, float]:
    """The newest value of every score of a model version."""
    newest: dict[str, Any] = {}
    for metric in client.get_logged_model(_model_id(version)).metrics or []:
        if metric.key not in newest or metric.timestamp >= newest[metric.key].timestamp:
            newest[metric.key] = metric
    return {name.removeprefix(SCORE): metric.value for name, metric in newest.items()}


@contextmanager
def registry_errors(registered_model_name: str) -> Iterator[None]:
    """Turn what the registry refuses into a PipelineError of one line; `registered_model_name` says what was asked."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, OSError, SQLAlchemyError) as error:
        reason = printable(without_secrets(str(error)))  # cut last: half an address is not known as one
        raise PipelineError(
            f"the model registry refused {registered_model_name}: {reason}; check MLFLOW_TRACKING_URI"
        ) from error


def _model_id(version: Any) -> str:
    """Id of the logged model behind a version, which MLflow's database keeps only in the version's source."""
    return str(version.model_id or version.source.removeprefix("models:/"))


def _log_scores(client: "MlflowClient", version: Any, scores: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    model_id = _model_id(version)
    entries = [
        Metric(f"{SCORE}{name}", value, now, 0, model_id=model_id, run_id=version.run_id)
        for name, value in scores.items()
    ]
    client.log_batch(version.run_id, metrics=entries)


def _log_version(run_id: str, weights: Path, registered_model_name: str, page: Path | None) -> str:
    import mlflow
    from mlflow.environment_variables import MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    # Text or nested lists in, a mapping, text and a mapping out: columns of MLflow's AnyType.
    outputs = Schema([ColSpec(AnyType(), name) for name in ("class_probs", "segmentation", "attention")])
    params = ParamSchema([ParamSpec("segmentation", DataType.string, "png")])
    package = Path(__file__).parents[1]
    # The server needs none of them, and MLflow stumbles over a library that reads one by a name in bytes.
    MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING.set(False)
    with TemporaryDirectory() as folder, mlflow.start_run(run_id=run_id):
        # MLflow follows a link, such as one into DVC's cache, and then refuses what lies outside its folder.
        files = {"weights": weights, **({"page": page} if page is not None else {})}
        copies = {name: str(shutil.copyfile(path, Path(folder) / path.name)) for name, path in files.items()}
        info: Any = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "release" / "served_model.py"),
            artifacts=copies,
            code_paths=[str(package)],
            signature=ModelSignature(Schema([ColSpec(AnyType(), "image")]), outputs, params),
            input_example=_input_example(),
            registered_model_name=registered_model_name,
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in SERVING_REQUIREMENTS],
        )
    return str(info.registered_model_version)


def _input_example() -> Any:
    """A request: one grey image of 64 x 48 pixels."""
    import pandas as pd
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "grey").save(buffer, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode("ascii")]})
