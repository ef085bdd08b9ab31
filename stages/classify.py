"""The classifier on the frozen trunk."""

from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from stages.run import run_stage, run_training


def classify(params: Params, space: Workspace) -> None:
    """models/pretrain.safetensors to models/classify.safetensors."""
    run_training(params, space, "classify")


if __name__ == "__main__":
    run_stage("classify", classify, on_ranks=True)
