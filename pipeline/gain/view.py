"""A batch of images as a network sees them in evaluation and in use: resized by its scale, answered at their own size.

Legend: B images of (H, W) pixels, N maps, C foreground classes.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pipeline.gain.attention import attention_to_image
from pipeline.model.fcn8s import FCN8s
from pipeline.model.trunk import Features


@dataclass(frozen=True)
class View:
    """The features of a batch, and what is read off them. At scale 1 nothing is resized."""

    model: FCN8s
    features: Features
    size: tuple[int, int]  # (H, W) of the images
    seen: tuple[int, int]  # of what the network saw of them

    @staticmethod
    def of(model: FCN8s, image: Tensor) -> "View":
        """Run the trunk on images (B, 3, H, W), normalised RGB, resized by `FCN8s.scale`."""
        shown = resized(image, seen_size(image, model.scale))
        return View(model, model.features(shown), _size(image), _size(shown))

    def class_logits(self) -> Tensor:
        """(B, C)."""
        return self.model.classify(self.features.conv5_3)

    def seg_logits(self) -> Tensor:
        """(B, C + 1, H, W)."""
        return resized(self.model.segment(self.features, self.seen), self.size)

    def attention(self, maps: Tensor) -> Tensor:
        """Maps (N, h, w) of the attention layer as maps of the images, (N, H, W) in the same range but for rounding."""
        return resized(attention_to_image(maps, self.seen, self.model.attention_grid)[:, None], self.size)[:, 0]


def seen_size(image: Tensor, scale: float) -> tuple[int, int]:
    """Height and width in pixels of images (..., H, W) times `scale`, rounded as training rounds them; at least 1."""
    height, width = (max(1, round(side * scale)) for side in _size(image))
    return height, width


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, K, h, w) at another size, bilinear, low-passed where it shrinks, as training resizes; itself if it has it."""
    if _size(images) == size or not images.numel():
        return images if images.numel() else images.new_zeros((*images.shape[:2], *size))
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
