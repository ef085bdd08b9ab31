"""Sections of params.yaml for tests: small, plain settings, of which a test changes what it is about."""

from typing import Any

from pipeline.base.attention import Attention
from pipeline.base.sections import Architecture, Training


def architecture_section(**changes: Any) -> Architecture:
    """A network of a few thousand parameters."""
    return Architecture.model_validate(
        {
            "width": 0.0625, "fc_channels": 8, "head_channels": 8, "head_bias": True, "batch_norm": True, "padding": 1,
            "dropout": 0.0, "skip_scales": (1.0, 1.0), "attention_layer": "conv5_3", **changes,
        }
    )  # fmt: skip


def full_architecture_section(**changes: Any) -> Architecture:
    """FCN8s at full width, as in the paper."""
    sizes = {"width": 1.0, "fc_channels": 4096, "head_channels": 1024, "batch_norm": False, "dropout": 0.5}
    return architecture_section(**{**sizes, **changes})


def attention_section(**changes: Any) -> Attention:
    """Equations 1 to 7 as the paper has them, first order, at full resolution."""
    return Attention.model_validate(
        {
            "mask_threshold": 0.5, "mask_slope": 10.0, "max_classes_per_image": 4, "masked_stride": 1,
            "second_order": False, "trunk_gradient": 1.0, "masked_gradient": "shared", "guidance": "masks",
            "guidance_resolution": "grid", "guidance_reduction": "mean", "guidance_sharpness": 1.0,
            "guidance_distance": "squared", "pixel_labels": {"fraction": 1.0}, "ramp_fraction": 0.1, **changes,
        }
    )  # fmt: skip


def training_section(**changes: Any) -> Training:
    """A short training in which everything learns."""
    return Training.model_validate(
        {
            "num_epochs": 4, "batch_size": 2, "accumulate_grad_batches": 1, "optimizer": "adamw",
            "learning_rate": 1.0e-2, "learning_rate_scales": {}, "momentum": 0.9, "weight_decay": 0.0,
            "warmup_fraction": 0.1, "max_gradient_norm": 5.0, "horizontal_flip": 0.0, "crop_size": None,
            "scale": (1.0, 1.0), "frozen": [], "trainable_trunk_blocks": 5, "update_batch_norm": True,
            "select": "last", "num_panel_images": 0,
            **changes,
        }
    )  # fmt: skip
