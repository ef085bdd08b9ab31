"""The classifier on the frozen trunk."""

from contextlib import nullcontext

from pipeline.base.params import Params
from pipeline.tracking.tracker import Tracking
from stages import Workspace, run_stage
from stages.launch import is_first_rank


def classify(params: Params, space: Workspace) -> None:
    """models/pretrain.safetensors to models/classify.safetensors."""
    with Tracking() if is_first_rank() else nullcontext() as tracking:
        from stages.train import train  # torch: seconds, in which the sender gets ready

        train(tracking, params, space, "classify")


if __name__ == "__main__":
    run_stage("classify", classify, on_ranks=True)
