"""The classifier on the frozen trunk."""

from pipeline.config import load_params
from pipeline.tracking import Tracking
from stages import MODELS, run_stage


def classify() -> None:
    """models/pretrain.safetensors to models/classify.safetensors."""
    params = load_params()
    weights = MODELS / "pretrain.safetensors"
    with Tracking() as tracking:
        from stages.train import train  # torch: seconds, in which the sender gets ready

        train(tracking, "classify", params, params.profile.classify, {"classification": 1.0}, initial_weights=weights)


if __name__ == "__main__":
    run_stage("classify", classify)
