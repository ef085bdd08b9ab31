"""`gain register`: the registry and the runs of MLflow hold what the last `dvc repro` made."""

from pipeline.base.errors import PipelineError
from pipeline.base.params import load_params
from pipeline.base.workspace import Workspace
from pipeline.release.mending import mend_runs, registered_version


def register_again(*, verify: bool) -> None:
    """Register the best candidate of the last `dvc repro`, and make missing runs again from models/ and reports/.

    Args:
        verify: look first, and leave version and aliases alone where the registry has the weights.

    Raises:
        PipelineError: nothing was evaluated here, or the tracking server does not answer or refuses.
    """
    space = Workspace()
    evaluated = space.reports / "evaluate" / "validation.json"
    if not space.manifest.exists() or not evaluated.exists():
        raise PipelineError(
            "nothing was trained and evaluated here that could be registered; run `dvc repro`, or `dvc checkout` for "
            "what is in DVC's cache"
        )
    params = load_params(space.params)
    name = params.register_.registered_model_name
    version = registered_version(space) if verify else None
    if version is None:
        if verify:
            print(f"register: the registry lacks the challenger of {name}; it is registered again", flush=True)
        from stages.register import register

        register(params, space)
        return
    made = mend_runs(params, space)
    runs = f"made again from models/ and reports/: {', '.join(made)}" if made else "none is missing"
    print(f"register: version {version} of {name} is there; runs: {runs}", flush=True)
