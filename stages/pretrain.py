"""FCN8s on the segmentation loss."""

from contextlib import nullcontext

from pipeline.base.params import Params
from pipeline.tracking.tracker import Tracking
from stages import Workspace, run_stage
from stages.launch import is_first_rank


def pretrain(params: Params, space: Workspace) -> None:
    """data/manifest.csv to models/pretrain.safetensors."""
    with Tracking() if is_first_rank() else nullcontext() as tracking:
        from stages.train import train  # torch: seconds, in which the sender gets ready

        train(tracking, params, space, "pretrain")


if __name__ == "__main__":
    run_stage("pretrain", pretrain, on_ranks=True)
