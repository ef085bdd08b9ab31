"""The four losses of guided training and their weighted sum. Equation numbers: arXiv 1802.10171.

A step may be worked off in parts and by several ranks. Every loss of a part is scaled so that its mean over parts and
ranks is the loss of the whole step: means over pixels or pairs divide by what a part has on average (`Counts`), not by
what this one has. A mean of the parts' own means would count a pair the more, the fewer share its part, and a part
without any would lower the loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.base.attention import Attention, GuidanceDistance, GuidanceReduction
from pipeline.base.ranks import num_ranks, rank_sum
from pipeline.data.samples import Sample
from pipeline.data.voc import IGNORE_INDEX
from pipeline.gain.attention import attention_to_image
from pipeline.gain.distances import DISTANCES
from pipeline.gain.network import GuidedOutput, Pairs
from pipeline.model.fcn8s import AttentionGrid
from pipeline.model.trunk import at_least_float32

LOSS_NAMES = ("segmentation", "classification", "attention_mining", "external_supervision")
ATTENTION_LOSSES = frozenset({"attention_mining", "external_supervision"})


class Counts(NamedTuple):
    """What the losses are means over; () each."""

    pixels: Tensor  # of the target, not void
    live: Tensor  # pairs with a live map
    supervised: Tensor  # pairs with a live map whose class has a pixel of guidance

    @staticmethod
    def of_step(parts: "Sequence[Counts]") -> "Counts":
        """What a part has on average: the counts of the parts of a step on this rank to those over all parts and ranks.

        Every rank must call it, with as many parts.
        """
        total = rank_sum(torch.stack([torch.stack(part) for part in parts]).sum(dim=0))
        return Counts(*(total / (len(parts) * num_ranks())).clamp(min=1e-6))  # to divide by


def segmentation_loss(seg_logits: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
    """Cross entropy, mean over the pixels that are not void; the reference project's addition to GAIN.

    Args:
        seg_logits: (B, C + 1, H, W).
        target: (B, H, W) int64, 255 = void.
        count: `Counts.pixels` of a step of which this is a part; without, this is all of it.

    Returns:
        () at least float32, 0 when every pixel is void.
    """
    total = F.cross_entropy(at_least_float32(seg_logits), target, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (_count(target != IGNORE_INDEX) if count is None else count)


def classification_loss(class_logits: Tensor, image_labels: Tensor) -> Tensor:
    """L_cl: binary cross entropy over all (image, class) cells. Logits and multi-hot labels (B, C) to ().

    The parts of a step are of one size, so that the mean of theirs is that of the step.
    """
    class_logits = at_least_float32(class_logits)
    return F.binary_cross_entropy_with_logits(class_logits, image_labels.to(class_logits.dtype))


def attention_mining_loss(masked_logits: Tensor, alive: Tensor, count: Tensor | None = None) -> Tensor:
    """Eq. 5: L_am = mean of s^c(I*^c) over the ground-truth pairs with a live map.

    The score is the sigmoid of the class's own logit: a raw logit has no minimum, and a softmax can be lowered by
    raising another class.

    Args:
        masked_logits: (N,) logit of each pair's class on its masked image.
        alive: (N,) bool; dead maps mask nothing and are left out.
        count: `Counts.live` of a step of which this is a part; without, this is all of it.

    Returns:
        () at least float32; of a whole step in [0, 1], 0 without a live pair.
    """
    return _masked_mean(at_least_float32(masked_logits).sigmoid(), alive, count)


def external_supervision_loss(
    attention: Tensor,
    mask: Tensor,
    weight: Tensor,
    selected: Tensor,
    reduction: GuidanceReduction,
    distance: GuidanceDistance,
    count: Tensor | None = None,
) -> Tensor:
    """Eq. 7: L_e = the distance of A^c from H^c over the cells of a map, then a mean over pairs.

    Args:
        attention: (N, h, w) normalised to [0, 1].
        mask: (N, h, w) H^c in [0, 1] from `pixel_supervision`.
        weight: (N, h, w) in [0, 1], 0 where all is void.
        selected: (N,) bool: pairs with a live map whose image is supervised.
        reduction: over cells. The paper's sum ties the loss weight to the image size; the mean does not.
        distance: by name in `distances.DISTANCES`, which says what each is and its range; the paper's is `squared`.
        count: `Counts.supervised` of a step of which this is a part; without, this is all of it.

    Returns:
        () at least float32, at least 0; 0 without a selected pair; of a whole step in the range of the distance.
    """
    per_pair = DISTANCES[distance](at_least_float32(attention), mask, weight, reduction)
    return _masked_mean(per_pair, selected, count)


def pixel_supervision(guidance: Tensor, pairs: Pairs, grid: AttentionGrid, sharpness: float) -> tuple[Tensor, Tensor]:
    """H^c of Eq. 7 on the attention grid: class masks averaged over each cell and divided by their maximum.

    The average is over the pixels that are inside the image and not void: of the others nobody knows whether they are
    the object's. How few they are is for the weight alone to say.

    Args:
        guidance: (B, H, W) integer class values: 0 background, 1..C, 255 = void.
        sharpness: exponent of H^c. Above 1, cells that an object only touches ask for less attention than the share
            that it covers, which makes up for what upsampling a map spreads beyond the object.

    Returns:
        H^c (N, h, w) in [0, 1], and the share of each cell (N, h, w) that is inside the image and not void.
    """
    size = (guidance.shape[1], guidance.shape[2])
    (rows, columns), before = grid.shape(size), grid.padding - 1
    right, bottom = columns * grid.stride - before - size[1], rows * grid.stride - before - size[0]
    canvas = F.pad(guidance, (before, right, before, bottom), value=IGNORE_INDEX)[pairs.image_index]
    weight = _cell_means(canvas != IGNORE_INDEX, grid.stride)
    mask = _cell_means(canvas == pairs.class_index[:, None, None] + 1, grid.stride) / weight.clamp(min=1e-6)
    return (mask / mask.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)) ** sharpness, weight


@dataclass(frozen=True)
class Criterion:
    """The losses of a run and their weighted sum.

    Args:
        loss_weights: by LOSS_NAMES; a loss that is not named, or weighs 0, is not computed.
        grid: `FCN8s.attention_grid`.
        attention: of it, guidance_resolution says where Eq. 7 compares attention with guidance: on the attention
            `grid`, or upsampled, at the resolution of the `image`; guidance_reduction and guidance_distance are those
            of `external_supervision_loss`; guidance_sharpness that of `pixel_supervision`, without effect at the
            resolution of the image.
    """

    loss_weights: Mapping[str, float]
    grid: AttentionGrid
    attention: Attention

    @property
    def needs(self) -> frozenset[str]:
        """Names of the losses to compute."""
        return frozenset(name for name, weight in self.loss_weights.items() if weight > 0)

    def __call__(self, output: GuidedOutput, batch: Sample, counts: Counts | None = None) -> dict[str, Tensor]:
        """The unweighted losses, keyed by LOSS_NAMES, each () and at least float32.

        Args:
            counts: `Counts.of_step`; without, the batch is all that this rank adds to a step, and every rank must call.
        """
        counts = Counts.of_step([self.counts(output, batch)]) if counts is None else counts
        losses: dict[str, Tensor] = {}
        if output.seg_logits is not None:
            losses["segmentation"] = segmentation_loss(output.seg_logits, batch.target, counts.pixels)
        if output.class_logits is not None:
            losses["classification"] = classification_loss(output.class_logits, batch.image_labels)
        if output.masked_logits is not None and output.alive is not None:
            losses["attention_mining"] = attention_mining_loss(output.masked_logits, output.alive, counts.live)
        if "external_supervision" in self.needs:
            losses["external_supervision"] = self._external_supervision(output, batch.guidance, counts.supervised)
        return losses

    def counts(self, output: GuidedOutput, batch: Sample) -> Counts:
        """What the losses of a batch are sums over, () int64; of the output, pairs and live maps are enough."""
        none = torch.zeros((), dtype=torch.int64, device=batch.target.device)
        pixels = (batch.target != IGNORE_INDEX).sum() if "segmentation" in self.needs else none
        if output.pairs is None or output.alive is None:
            return Counts(pixels, none, none)
        supervised = "external_supervision" in self.needs
        selected = output.alive & _pointed_at(batch.guidance, output.pairs) if supervised else None
        return Counts(pixels, output.alive.sum(), none if selected is None else selected.sum())

    def total(self, losses: Mapping[str, Tensor], ramp: float) -> Tensor:
        """Eqs. 6 and 8 with the segmentation loss: sum of weight times loss; `ramp` in [0, 1] scales attention's."""
        terms = [
            loss * self.loss_weights[name] * (ramp if name in ATTENTION_LOSSES else 1.0)
            for name, loss in losses.items()
        ]
        return torch.stack(terms).sum()

    def _external_supervision(self, output: GuidedOutput, guidance: Tensor, count: Tensor) -> Tensor:
        pairs, attention, alive = output.pairs, output.attention, output.alive
        assert pairs is not None
        assert attention is not None
        assert alive is not None
        if self.attention.guidance_resolution == "image":
            attention = attention_to_image(attention, (guidance.shape[1], guidance.shape[2]), self.grid)
            weight = (guidance != IGNORE_INDEX).float()[pairs.image_index]
            mask = _class_pixels(guidance, pairs).float()
        else:
            mask, weight = pixel_supervision(guidance, pairs, self.grid, self.attention.guidance_sharpness)
        options, selected = self.attention, alive & _pointed_at(guidance, pairs)
        return external_supervision_loss(
            attention, mask, weight, selected, options.guidance_reduction, options.guidance_distance, count
        )


def _class_pixels(guidance: Tensor, pairs: Pairs) -> Tensor:
    """(N, H, W) bool: where guidance (B, H, W) shows the class of the pair."""
    return guidance[pairs.image_index] == pairs.class_index[:, None, None] + 1


def _pointed_at(guidance: Tensor, pairs: Pairs) -> Tensor:
    """(N,) bool: without a pixel of its class, nobody has said where to look."""
    return _class_pixels(guidance, pairs).flatten(1).any(dim=1)


def _cell_means(pixels: Tensor, stride: int) -> Tensor:
    # With a channel dimension, since pooling refuses an empty batch of (H, W) maps.
    return F.avg_pool2d(pixels[:, None].float(), stride)[:, 0]


def _masked_mean(values: Tensor, selected: Tensor, count: Tensor | None) -> Tensor:
    return torch.where(selected, values, 0.0).sum() / (_count(selected) if count is None else count)


def _count(selected: Tensor) -> Tensor:
    """How many are selected; more than 0, to divide by."""
    return selected.sum().float().clamp(min=1e-6)
