"""Make the best guided variant the challenger in the model registry."""

import json
from collections import Counter
from importlib.util import find_spec

from pipeline.base.errors import PipelineError
from pipeline.base.files import write_json, write_text
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.data.manifest import read_manifest
from pipeline.data.voc import read_class_names
from pipeline.datasets.counterfactual.table import read_table
from pipeline.release.facts import VersionFacts, version_tags
from pipeline.release.mending import mend_runs
from pipeline.release.model_card import model_card, read_intervals
from pipeline.release.registry import explain_choice, register_model, select_variant
from pipeline.report.tables import flat_scores
from stages.run import run_stage


def register(params: Params, space: Workspace) -> None:
    """reports/evaluate and models/ to a model version; reports/register has its card and says which weights it has."""
    if find_spec("mlflow") is None:
        raise PipelineError("MLflow is not installed, and the model registry is MLflow's; install it, and rerun")
    name, evaluated = params.register_.registered_model_name, space.reports / "evaluate"
    scores = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))
    validation = json.loads((evaluated / "validation.json").read_text(encoding="utf-8"))
    variant = select_variant(validation, params.register_.candidates, params.register_.metric)
    choice = explain_choice(validation, params.register_.candidates, params.register_.metric)
    rows, weights = read_manifest(space.manifest), space.weights(variant)
    tested = [*rows, *read_table(space.counterfactual)]
    tags = version_tags(params, variant, weights, tested) | {"chosen_by": choice}
    num_images = Counter(row.split for row in rows)
    intervals = read_intervals(evaluated / "tables" / "intervals.csv", variant)
    card = model_card(params, variant, read_class_names(space.data), num_images, intervals, choice)
    run_name, page = f"{variant}-seed{params.seed}", evaluated / "index.html"
    facts = VersionFacts(run_name, tags, flat_scores(scores[variant]), card, page if page.exists() else None)
    for training in mend_runs(params, space):
        print(f"register: MLflow had no run of {training}; it has one again, from models/ and reports/", flush=True)
    version = register_model(weights, name, facts)
    # Without the version number, which is the registry's and differs wherever the same model is registered.
    content = {"registered_model_name": name, **tags, "metrics": scores[variant]}
    write_json(space.reports / "register" / "challenger.json", content)
    write_text(space.reports / "register" / "model_card.md", card + "\n")
    print(f"register: {variant} is version {version} of {name}, alias challenger", flush=True)


if __name__ == "__main__":
    run_stage("register", register)
