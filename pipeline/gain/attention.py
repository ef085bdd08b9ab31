"""Guided attention, one function per equation of "Tell Me Where to Look" (Li et al., CVPR 2018, arXiv 1802.10171).

Legend: B images, C foreground classes, K channels of conv5_3, (h, w) the grid of the attention layer (conv5_3 at stride
16, unless the network says pool5), N (image, class) pairs.
Attention is computed in float32 with autocast off, from logits: behind a sigmoid the map's weight would carry the
sigmoid's derivative, which is exactly 0 in float32 at a logit of 17.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.fcn8s import AttentionGrid, Classifier, FCN8s
from pipeline.model.trunk import pool

DEAD_MAP_MAXIMUM = 1e-6  # a map whose maximum is below this attends to nothing


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


def importance_weights(
    classifier: Classifier, pooled: Tensor, grid: tuple[int, int], *, second_order: bool = False
) -> Tensor:
    """Eq. 1 in closed form: w^c_k = GAP(d s^c / d f_k) = J_ck / (h w), J the Jacobian of the classifier.

    Max pooling routes each window to one cell and average pooling weighs all windows alike, so the gradient summed
    over the grid is the Jacobian of the linear layers at GAP(pool5): ((W3 [h2 > 0]) W2 [h1 > 0]) W1, whether the grid
    is that of conv5_3 or of pool5. No backward pass, every class at once. Checked against autograd, pytorch-grad-cam
    and captum in tests/gain.

    Args:
        pooled: (B, K) float32 from `FCN8s.pooled`.
        grid: (h, w) of the attention layer.
        second_order: keep the graph to the classifier's weights. The trunk's gradient is the same either way,
            since the Jacobian of a ReLU network is piecewise constant in its input.

    Returns:
        (B, C, K) float32.
    """
    with torch.set_grad_enabled(second_order and torch.is_grad_enabled()):
        h1 = F.linear(pooled, classifier.fc1.weight, classifier.fc1.bias)  # (B, hidden)
        h2 = F.linear(h1.relu(), classifier.fc2.weight, classifier.fc2.bias)  # (B, hidden)
        jacobian = classifier.score.weight * (h2 > 0)[:, None, :]  # (B, C, hidden)
        jacobian = (jacobian @ classifier.fc2.weight) * (h1 > 0)[:, None, :]  # (B, C, hidden)
        return (jacobian @ classifier.fc1.weight) / (grid[0] * grid[1])  # (B, C, K)


def attention_map(weights: Tensor, features: Tensor) -> Tensor:
    """Eq. 2: A^c = ReLU(sum_k w^c_k f_k). weights (B, C, K), features (B, K, h, w) to (B, C, h, w), at least 0."""
    return torch.einsum("bck,bkhw->bchw", weights, features).relu()


def class_attention(model: FCN8s, conv5_3: Tensor, *, second_order: bool = False) -> Tensor:
    """Grad-CAM of every class, Eqs. 1 and 2, at the network's attention layer.

    Args:
        conv5_3: (B, K, H/16, W/16).
        second_order: see `importance_weights`.

    Returns:
        (B, C, h, w) float32, not normalised.
    """
    with torch.autocast(conv5_3.device.type, enabled=False):
        conv5_3 = conv5_3.float()
        features = pool(conv5_3) if model.attention_layer == "pool5" else conv5_3
        grid = (features.shape[2], features.shape[3])
        weights = importance_weights(model.classifier, model.pooled(conv5_3), grid, second_order=second_order)
        return attention_map(weights, features)


def normalise_attention(attention: Tensor) -> tuple[Tensor, Tensor]:
    """A / max(A) per map, kept in the graph: a scale shared by the whole map then earns no gradient.

    Args:
        attention: (..., h, w), at least 0.

    Returns:
        The maps in [0, 1], dead ones all 0, and (...) bool, True where the map is alive.
    """
    maximum = attention.amax(dim=(-2, -1), keepdim=True)
    alive = maximum >= DEAD_MAP_MAXIMUM
    normalised = torch.where(alive, attention / maximum.clamp(min=DEAD_MAP_MAXIMUM), 0.0)
    return normalised, alive[..., 0, 0]


def attention_to_image(attention: Tensor, image_size: tuple[int, int], grid: AttentionGrid) -> Tensor:
    """Bilinear, by exactly the stride, then cut to the image: at stride 16, cell (i, j) covers pixels 16 i to 16 i+15.

    Args:
        attention: (N, h, w).
        image_size: (H, W) in pixels.
        grid: `FCN8s.attention_grid`; with padding 100 the image lies 99 pixels inside the canvas.

    Returns:
        (N, H, W).
    """
    if attention.shape[0] == 0:
        return attention.new_zeros((0, *image_size))
    canvas = F.interpolate(attention[:, None], scale_factor=grid.stride, mode="bilinear", align_corners=False)[:, 0]
    top = grid.padding - 1
    return canvas[:, top : top + image_size[0], top : top + image_size[1]]


def soft_mask(attention: Tensor, *, threshold: float, slope: float) -> Tensor:
    """Eq. 4: T(A) = 1 / (1 + exp(-slope (A - threshold))), the paper's omega and sigma. Any shape, in (0, 1)."""
    return torch.sigmoid(slope * (attention - threshold))


def masked_image(image: Tensor, mask: Tensor) -> Tensor:
    """Eq. 3: I* = I - T(A) * I. image (N, 3, H, W) normalised, so that 0 is the data mean; mask (N, H, W) in [0, 1]."""
    return image * (1.0 - mask[:, None]).to(image.dtype)


def class_pairs(image_labels: Tensor, max_classes_per_image: int) -> Pairs:
    """The ground-truth classes of every image, flattened; images with more than the cap give a random choice.

    On a GPU this waits for the device: how many pairs there are decides the shapes of what follows.

    Args:
        image_labels: (B, C) multi-hot.
        max_classes_per_image: cap on the pairs of one image.
    """
    present = image_labels > 0
    if int(present.sum(dim=1).max()) > max_classes_per_image:
        keys = torch.rand(image_labels.shape, device=image_labels.device).masked_fill(~present, -1.0)
        kept = keys.topk(max_classes_per_image, dim=1).indices
        present = present & torch.zeros_like(present).scatter_(1, kept, True)
    image_index, class_index = present.nonzero(as_tuple=True)
    return Pairs(image_index, class_index)


class GuidedNetwork(nn.Module):
    """FCN8s as it is trained: one pass of the image, and one of the masked images where attention mining needs it.

    Args:
        mask_threshold, mask_slope: sigma and omega of Eq. 4.
        masked_stride: pixels of the image per pixel of the masked pass, each way. At 2 the masked images are averaged
            over 2 x 2 pixels first, which makes the pass, the dearest part of a step, four times cheaper.
        second_order: see `importance_weights`.
        trunk_gradient: share in [0, 1] of the gradient of both attention losses that goes through the map into the
            trunk. The classifier, with second order, gets all of it: choosing among the channels that are there
            costs the segmentation less than changing them.
        masked_gradient: who learns from the masked pass. `shared`: the network that classifies it and the map that
            masks it, as in the paper; `attention_only`: the map alone, while the classifying network stands still.
    """

    def __init__(
        self,
        model: FCN8s,
        *,
        mask_threshold: float = 0.5,
        mask_slope: float = 10.0,
        masked_stride: int = 1,
        second_order: bool = False,
        trunk_gradient: float = 1.0,
        masked_gradient: Literal["shared", "attention_only"] = "shared",
    ) -> None:
        super().__init__()
        self.model = model
        self.mask_threshold = mask_threshold
        self.mask_slope = mask_slope
        self.masked_stride = masked_stride
        self.second_order = second_order
        self.trunk_gradient = trunk_gradient
        self.masked_gradient = masked_gradient

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
        conv5_3 = torch.lerp(features.conv5_3.detach(), features.conv5_3, self.trunk_gradient)
        maps = class_attention(self.model, conv5_3, second_order=self.second_order)
        attention, alive = normalise_attention(maps[pairs.image_index, pairs.class_index])
        mined = "attention_mining" in needs
        masked_logits = self._masked_logits(image, attention, alive, pairs) if mined else None
        return GuidedOutput(seg_logits, class_logits, pairs, attention, alive, masked_logits)

    def _masked_logits(self, image: Tensor, attention: Tensor, alive: Tensor, pairs: Pairs) -> Tensor:
        if pairs.image_index.numel() == 0:
            return attention.new_zeros(0)
        upsampled = attention_to_image(attention, (image.shape[2], image.shape[3]), self.model.attention_grid)
        mask = soft_mask(upsampled, threshold=self.mask_threshold, slope=self.mask_slope) * alive[:, None, None]
        masked = masked_image(image[pairs.image_index], mask)
        if self.masked_stride > 1:
            masked = F.avg_pool2d(masked, self.masked_stride, ceil_mode=True, count_include_pad=False)
        learn = self.masked_gradient == "shared"
        logits = self.model.classify(self.model.features(masked, learn=learn).conv5_3, learn=learn)
        return logits.gather(1, pairs.class_index[:, None])[:, 0]
