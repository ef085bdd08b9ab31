"""FCN8s on the segmentation loss."""

from contextlib import nullcontext

from pipeline.config import Params
from pipeline.launch import is_first_rank
from pipeline.tracking import Tracking
from stages import Workspace, run_stage


def pretrain(params: Params, space: Workspace) -> None:
    """data/manifest.csv to models/pretrain.safetensors."""
    with Tracking() if is_first_rank() else nullcontext() as tracking:
        from stages.train import train  # torch: seconds, in which the sender gets ready

        train(tracking, params, space, "pretrain")


if __name__ == "__main__":
    run_stage("pretrain", pretrain, on_ranks=True)
