"""FCN8s as it is trained with guided attention: which maps are guided, and the pass of the masked images.

Legend: B images, C foreground classes, (h, w) the grid of the attention layer, N (image, class) pairs.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.base.attention import Attention
from pipeline.gain.attention import attention_to_image, class_attention, masked_image, normalise_attention, soft_mask
from pipeline.model.fcn8s import FCN8s


class Pairs(NamedTuple):
    """(image, class) pairs flattened over a batch."""

    image_index: Tensor  # (N,) int64 in [0, B)
    class_index: Tensor  # (N,) int64 in [0, C)


class GuidedOutput(NamedTuple):
    """What the losses need of one forward pass; None where `needs` did not ask for it."""

    seg_logits: Tensor | None = None  # (B, C + 1, H, W)
    class_logits: Tensor | None = None  # (B, C) float32
    pairs: Pairs | None = None
    attention: Tensor | None = None  # (N, h, w) float32 in [0, 1], normalised per pair
    alive: Tensor | None = None  # (N,) bool: the map is not dead
    masked_logits: Tensor | None = None  # (N,) float32: logit of the pair's class on its masked image


def class_keys(sample_index: Tensor, num_classes: int, *, seed: int, epoch: int) -> Tensor:
    """Random numbers that choose the classes of crowded images: a function of seed, epoch and image alone.

    So it does not matter which images share a batch, nor what else is drawn at random.

    Args:
        sample_index: (B,) int64.

    Returns:
        (B, C) float64 in [0, 1).
    """
    # The augmentation draws from the same three without a spawn key.
    seeds = (np.random.SeedSequence([seed, epoch, index], spawn_key=(1,)) for index in sample_index.tolist())
    keys = [np.random.default_rng(entropy).random(num_classes) for entropy in seeds]
    return torch.from_numpy(np.stack(keys))


def class_pairs(image_labels: Tensor, max_classes_per_image: int, keys: Tensor | None = None) -> Pairs:
    """The ground-truth classes of every image, flattened; images with more than the cap give those of highest key.

    On a GPU this waits for the device: how many pairs there are decides the shapes of what follows.

    Args:
        image_labels: (B, C) multi-hot.
        max_classes_per_image: cap on the pairs of one image.
        keys: (B, C) at least 0, from `class_keys`; needed where an image may have more classes than the cap.

    Raises:
        ValueError: an image has more, and there are no keys.
    """
    present = image_labels > 0
    if int(present.sum(dim=1).max()) > max_classes_per_image:
        if keys is None:
            raise ValueError(f"an image shows more than {max_classes_per_image} classes, and there are no keys")
        kept = keys.masked_fill(~present, -1.0).topk(max_classes_per_image, dim=1).indices
        present = present & torch.zeros_like(present).scatter_(1, kept, True)
    image_index, class_index = present.nonzero(as_tuple=True)
    return Pairs(image_index, class_index)


class GuidedNetwork(nn.Module):
    """FCN8s as it is trained: one pass of the image, and one of the masked images where attention mining needs it.

    Args:
        options: of it, mask_threshold and mask_slope are sigma and omega of Eq. 4; second_order is explained at
            `importance_weights`. masked_stride: pixels of the image per pixel of the masked pass, each way; at 2 the
            masked images are averaged over 2 x 2 pixels first, which makes the pass, the most expensive part of a step,
            four times cheaper. trunk_gradient: share in [0, 1] of the gradient of both attention losses that goes
            through the map into the trunk; the classifier, with second order, gets all of it, since choosing among the
            channels that are there costs the segmentation less than changing them. masked_gradient: who learns from
            the masked pass; `shared`: the network that classifies it and the map that masks it, as in the paper;
            `attention_only`: the map alone, while the classifying network stands still.
    """

    def __init__(self, model: FCN8s, options: Attention) -> None:
        super().__init__()
        self.model = model
        self.options = options

    def forward(self, image: Tensor, pairs: Pairs, needs: frozenset[str]) -> GuidedOutput:
        """Compute what the losses named in `needs` are made of, and nothing else.

        Args:
            image: (B, 3, H, W) normalised RGB.
            pairs: whose attention is guided, from `class_pairs`.
            needs: keys of `losses.LOSS_NAMES`.
        """
        features = self.model.features(image)
        size = (image.shape[2], image.shape[3])
        seg_logits = self.model.segment(features, size) if "segmentation" in needs else None
        class_logits = self.model.classify(features.conv5_3) if "classification" in needs else None
        if not needs & {"attention_mining", "external_supervision"}:
            return GuidedOutput(seg_logits, class_logits)
        conv5_3 = torch.lerp(features.conv5_3.detach(), features.conv5_3, self.options.trunk_gradient)
        maps = class_attention(self.model, conv5_3, second_order=self.options.second_order)
        attention, alive = normalise_attention(maps[pairs.image_index, pairs.class_index])
        mined = "attention_mining" in needs
        masked_logits = self._masked_logits(image, attention, alive, pairs) if mined else None
        return GuidedOutput(seg_logits, class_logits, pairs, attention, alive, masked_logits)

    def _masked_logits(self, image: Tensor, attention: Tensor, alive: Tensor, pairs: Pairs) -> Tensor:
        if pairs.image_index.numel() == 0:
            return attention.new_zeros(0)
        upsampled = attention_to_image(attention, (image.shape[2], image.shape[3]), self.model.attention_grid)
        mask = (
            soft_mask(upsampled, threshold=self.options.mask_threshold, slope=self.options.mask_slope)
            * alive[:, None, None]
        )
        masked = masked_image(image[pairs.image_index], mask)
        if self.options.masked_stride > 1:
            masked = F.avg_pool2d(masked, self.options.masked_stride, ceil_mode=True, count_include_pad=False)
        learn = self.options.masked_gradient == "shared"
        logits = self.model.classify(self.model.features(masked, learn=learn).conv5_3, learn=learn)
        return logits.gather(1, pairs.class_index[:, None])[:, 0]
