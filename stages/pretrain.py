"""FCN8s on the segmentation loss."""

from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from stages.run import run_stage, run_training


def pretrain(params: Params, space: Workspace) -> None:
    """data/manifest.csv to models/pretrain.safetensors."""
    run_training(params, space, "pretrain")


if __name__ == "__main__":
    run_stage("pretrain", pretrain, on_ranks=True)
