"""Segmentation, classification and, by variant, the attention losses together."""

import sys

from pipeline.config import load_params
from pipeline.errors import PipelineError
from pipeline.tracking import Tracking
from stages import MODELS, run_stage


def finetune(variant: str = "") -> None:
    """models/classify.safetensors to models/finetune/VARIANT.safetensors."""
    params = load_params()
    finetune = params.profile.finetune
    if variant not in finetune.variants:
        known = ", ".join(finetune.variants)
        raise PipelineError(
            f"params.yaml: finetune.variants has no {variant!r}; usage: python -m stages.finetune {known}"
        )
    weights = MODELS / "classify.safetensors"
    with Tracking() as tracking:
        from stages.train import train  # torch: seconds, in which the sender gets ready

        train(
            tracking,
            "finetune",
            params,
            finetune.training,
            {str(name): weight for name, weight in finetune.variants[variant].items()},
            variant=variant,
            initial_weights=weights,
        )


if __name__ == "__main__":
    run_stage("finetune", finetune, *sys.argv[1:2])
