"""The four losses of guided training and their weighted sum. Equation numbers: arXiv 1802.10171."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.loading import Sample
from pipeline.data.voc import IGNORE_INDEX
from pipeline.gain.attention import GuidedOutput, Pairs
from pipeline.model.fcn8s import STRIDE, attention_grid

LOSS_NAMES = ("segmentation", "classification", "attention_mining", "external_supervision")
ATTENTION_LOSSES = frozenset({"attention_mining", "external_supervision"})


def segmentation_loss(seg_logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy, mean over the pixels that are not void; the reference project's addition to GAIN.

    Args:
        seg_logits: (B, C + 1, H, W).
        target: (B, H, W) int64, 255 = void.

    Returns:
        () float32, 0 when every pixel is void.
    """
    total = F.cross_entropy(seg_logits.float(), target, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (target != IGNORE_INDEX).sum().clamp(min=1)


def classification_loss(class_logits: Tensor, image_labels: Tensor) -> Tensor:
    """L_cl: binary cross entropy over all (image, class) cells. Logits and multi-hot labels (B, C) to () float32."""
    return F.binary_cross_entropy_with_logits(class_logits.float(), image_labels)


def attention_mining_loss(masked_logits: Tensor, alive: Tensor) -> Tensor:
    """Eq. 5: L_am = mean of s^c(I*^c) over the ground-truth pairs with a live map.

    The score is the sigmoid of the class's own logit: a raw logit has no minimum, and a softmax can be lowered by
    raising another class.

    Args:
        masked_logits: (N,) logit of each pair's class on its masked image.
        alive: (N,) bool; dead maps mask nothing and are left out.

    Returns:
        () float32 in [0, 1], 0 without a live pair.
    """
    return _masked_mean(masked_logits.float().sigmoid(), alive)


def external_supervision_loss(attention: Tensor, mask: Tensor, weight: Tensor, selected: Tensor) -> Tensor:
    """Eq. 7: L_e = (A^c - H^c)^2, here a mean over valid cells and then over pairs.

    The paper sums over cells, which ties the loss weight to the image size.

    Args:
        attention: (N, h, w) normalised to [0, 1].
        mask: (N, h, w) H^c in [0, 1] from `pixel_supervision`.
        weight: (N, h, w) in [0, 1], 0 where all is void.
        selected: (N,) bool: pairs with a live map whose image has pixel labels.

    Returns:
        () float32 in [0, 1], 0 without a selected pair.
    """
    squared = (attention.float() - mask) ** 2 * weight
    per_pair = squared.sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp(min=1e-6)
    return _masked_mean(per_pair, selected)


def pixel_supervision(target: Tensor, pairs: Pairs, padding: int) -> tuple[Tensor, Tensor]:
    """H^c of Eq. 7 on the grid of conv5_3: class masks averaged over each cell and divided by their maximum.

    Args:
        target: (B, H, W) int64, 0 background, 1..C, 255 = void.
        padding: of the network's conv1_1.

    Returns:
        H^c (N, h, w) in [0, 1], and the share of each cell (N, h, w) that is inside the image and not void.
    """
    grid = attention_grid((target.shape[1], target.shape[2]), padding)
    before = padding - 1
    right, bottom = (grid[1] * STRIDE - before - target.shape[2], grid[0] * STRIDE - before - target.shape[1])
    canvas = F.pad(target, (before, right, before, bottom), value=IGNORE_INDEX)[pairs.image_index]
    mask = _cell_means(canvas == pairs.class_index[:, None, None] + 1)
    weight = _cell_means(canvas != IGNORE_INDEX)
    return mask / mask.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6), weight


def compute_losses(output: GuidedOutput, batch: Sample, needs: frozenset[str], padding: int) -> dict[str, Tensor]:
    """The unweighted losses named in `needs`, keyed by LOSS_NAMES, each () float32."""
    losses: dict[str, Tensor] = {}
    if "segmentation" in needs:
        losses["segmentation"] = segmentation_loss(output.seg_logits, batch.target)  # type: ignore[arg-type]
    if "classification" in needs:
        losses["classification"] = classification_loss(output.class_logits, batch.image_labels)  # type: ignore[arg-type]
    if "attention_mining" in needs:
        losses["attention_mining"] = attention_mining_loss(output.masked_logits, output.alive)  # type: ignore[arg-type]
    if "external_supervision" in needs:
        assert output.pairs is not None
        assert output.attention is not None
        assert output.alive is not None
        mask, weight = pixel_supervision(batch.target, output.pairs, padding)
        selected = output.alive & batch.pixel_label[output.pairs.image_index]
        losses["external_supervision"] = external_supervision_loss(output.attention, mask, weight, selected)
    return losses


def weighted_sum(losses: Mapping[str, Tensor], loss_weights: Mapping[str, float], ramp: float) -> Tensor:
    """Eqs. 6 and 8 with the segmentation loss: sum of weight times loss; `ramp` in [0, 1] scales attention losses."""
    terms = [loss * loss_weights[name] * (ramp if name in ATTENTION_LOSSES else 1.0) for name, loss in losses.items()]
    return torch.stack(terms).sum()


def _cell_means(pixels: Tensor) -> Tensor:
    # With a channel dimension, since pooling refuses an empty batch of (H, W) maps.
    return F.avg_pool2d(pixels[:, None].float(), STRIDE)[:, 0]


def _masked_mean(values: Tensor, selected: Tensor) -> Tensor:
    return torch.where(selected, values, 0.0).sum() / selected.sum().clamp(min=1)
