"""Segmentation, classification and, by variant, the attention losses together."""

from contextlib import nullcontext

from pipeline.base.errors import PipelineError
from pipeline.base.params import Params
from pipeline.tracking.tracker import Tracking
from stages import Workspace, run_stage
from stages.launch import is_first_rank


def finetune(params: Params, space: Workspace, variant: str) -> None:
    """models/classify.safetensors to models/finetune/VARIANT.safetensors."""
    if variant not in params.profile.finetune.variants:
        known = ", ".join(params.profile.finetune.variants)
        raise PipelineError(f"params.yaml: finetune.variants has no {variant!r}; choose one of: {known}")
    with Tracking() if is_first_rank() else nullcontext() as tracking:
        from stages.train import train  # torch: seconds, in which the sender gets ready

        train(tracking, params, space, "finetune", variant)


if __name__ == "__main__":
    run_stage("finetune", finetune, argument="variant", on_ranks=True)
