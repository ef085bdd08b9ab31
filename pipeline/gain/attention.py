"""Guided attention, one function per equation of "Tell Me Where to Look" (Li et al., CVPR 2018, arXiv 1802.10171).

Legend: B images, C foreground classes, K channels of conv5_3, (h, w) the grid of the attention layer (conv5_3 at stride
16, unless the network says pool5), N (image, class) pairs.
Attention is computed in float32, in float64 where the network is, with autocast off, from logits: behind a sigmoid the
map's weight would carry the sigmoid's derivative, which is exactly 0 in float32 at a logit of 17.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.decoder import upsample
from pipeline.model.fcn8s import AttentionGrid, Classifier, FCN8s
from pipeline.model.trunk import at_least_float32, pool

DEAD_MAP_MAXIMUM = 1e-6  # a map whose maximum is below this attends to nothing


def importance_weights(
    classifier: Classifier, pooled: Tensor, grid: tuple[int, int], *, second_order: bool = False
) -> Tensor:
    """Eq. 1 in closed form: w^c_k = GAP(d s^c / d f_k) = J_ck / (h w), J the Jacobian of the classifier.

    Max pooling routes each window to one cell and average pooling weighs all windows alike, so the gradient summed
    over the grid is the Jacobian of the linear layers at GAP(pool5): ((W3 [h2 > 0]) W2 [h1 > 0]) W1, whether the grid
    is that of conv5_3 or of pool5. No backward pass, every class at once. Checked against autograd, pytorch-grad-cam
    and captum in tests/gain.

    Args:
        pooled: (B, K), at least float32, from `FCN8s.pooled`.
        grid: (h, w) of the attention layer.
        second_order: keep the graph to the classifier's weights. The trunk's gradient is the same either way,
            since the Jacobian of a ReLU network is piecewise constant in its input.

    Returns:
        (B, C, K) of the type of `pooled`.
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
        (B, C, h, w) in float32 or more, not normalised.
    """
    with torch.autocast(conv5_3.device.type, enabled=False):
        conv5_3 = at_least_float32(conv5_3)
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
    canvas = upsample(attention[:, None], grid.stride)[:, 0]
    top = grid.padding - 1
    return canvas[:, top : top + image_size[0], top : top + image_size[1]]


def soft_mask(attention: Tensor, *, threshold: float, slope: float) -> Tensor:
    """Eq. 4: T(A) = 1 / (1 + exp(-slope (A - threshold))), the paper's omega and sigma. Any shape, in (0, 1)."""
    return torch.sigmoid(slope * (attention - threshold))


def masked_image(image: Tensor, mask: Tensor) -> Tensor:
    """Eq. 3: I* = I - T(A) * I. image (N, 3, H, W) normalised, so that 0 is the data mean; mask (N, H, W) in [0, 1]."""
    return image * (1.0 - mask[:, None]).to(image.dtype)
