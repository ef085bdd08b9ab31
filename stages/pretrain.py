"""FCN8s on the segmentation loss."""

from pipeline.config import load_params
from pipeline.tracking import Tracking
from stages import run_stage


def pretrain() -> None:
    """data/manifest.csv to models/pretrain.safetensors."""
    params = load_params()
    with Tracking() as tracking:
        from stages.train import train  # torch: seconds, in which the sender gets ready

        train(tracking, "pretrain", params, params.profile.pretrain, {"segmentation": 1.0})


if __name__ == "__main__":
    run_stage("pretrain", pretrain)
