"""Segmentation, classification and, by variant, the attention losses together."""

from pipeline.base.errors import PipelineError, did_you_mean
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from stages.run import run_stage, run_training


def finetune(params: Params, space: Workspace, variant: str) -> None:
    """models/classify.safetensors to models/finetune/VARIANT.safetensors."""
    if variant not in params.variants:
        raise PipelineError(f"params.yaml: variants has no {variant!r}; {did_you_mean(variant, params.variants)}")
    run_training(params, space, "finetune", variant)


if __name__ == "__main__":
    run_stage("finetune", finetune, argument="variant", on_ranks=True)
