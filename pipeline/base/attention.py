"""The sections of params.yaml about attention, `attention` and `variants`; see base/sections.py for the others."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.base.ranges import Count, Fraction, Section, Weight

LossName = Literal["segmentation", "classification", "attention_mining", "external_supervision"]
GuidanceReduction = Literal["mean", "sum"]
GuidanceDistance = Literal["squared", "absolute", "energy", "rrr", "ppce"]  # see gain/distances.py


class PixelLabels(Section):
    """How many training images keep their pixel labels for external supervision: a count, or a fraction of all."""

    count: Count | None = None
    fraction: Fraction | None = None

    @model_validator(mode="after")
    def _is_one_of_two(self) -> "PixelLabels":
        if (self.count is None) == (self.fraction is None):
            raise ValueError("name either count (images) or fraction (of the training images), one of the two")
        return self


class Attention(Section):
    """Equations 1 to 7 and the choices that the paper leaves open."""

    mask_threshold: Fraction
    mask_slope: Annotated[float, Field(gt=0.0, le=10_000.0)]
    max_classes_per_image: Annotated[int, Field(ge=1, le=254)]
    masked_stride: Literal[1, 2, 4]
    second_order: bool
    trunk_gradient: Fraction
    masked_gradient: Literal["shared", "attention_only"]
    guidance: Literal["masks", "boxes", "shuffled_masks"]
    guidance_resolution: Literal["grid", "image"]
    guidance_reduction: GuidanceReduction
    guidance_sharpness: Annotated[float, Field(gt=0.0, le=1000.0)]
    guidance_distance: GuidanceDistance
    pixel_labels: PixelLabels
    ramp_fraction: Fraction


class Variant(Section):
    """One way to fine-tune: the weights of its losses, and the attention choices in which it differs."""

    loss_weights: dict[LossName, Weight]
    attention: dict[str, Any] = Field(default_factory=dict)
