"""FCN8s' decoder: class scores at three strides, fused and upsampled to the image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.trunk import Features, at_least_float32, pool

# Layers of the original network that upsample, and by how much. Their weights are fixed (Caffe: lr_mult 0).
UPSAMPLING = {"upscore2": 2, "upscore_pool4": 2, "upscore8": 8}
# Caffe's crops with padding 100: skip scores and output are cut to the upsampled map at these offsets.
CAFFE_CROP_POOL4, CAFFE_CROP_POOL3, CAFFE_CROP_OUTPUT = 5, 9, 31


class Decoder(nn.Module):
    """Class scores from pool5, pool4 and pool3, fused and upsampled to the image."""

    def __init__(
        self,
        num_classes: int,
        *,
        width: float,
        fc_channels: int,
        padding: int,
        dropout: float,
        skip_scales: tuple[float, float],
    ) -> None:
        super().__init__()
        pool3_channels, pool4_channels, pool5_channels = (max(1, int(c * width)) for c in (256, 512, 512))
        self.caffe_padding = padding == 100
        self.skip_scales = skip_scales
        self.fc6 = FullyConnected(pool5_channels, fc_channels, side=7, margin=0 if self.caffe_padding else 3)
        self.fc7 = FullyConnected(fc_channels, fc_channels, side=1, margin=0)
        self.dropout = nn.Dropout2d(dropout)
        self.score_fr = nn.Conv2d(fc_channels, num_classes, kernel_size=1)
        self.score_pool3 = nn.Conv2d(pool3_channels, num_classes, kernel_size=1)
        self.score_pool4 = nn.Conv2d(pool4_channels, num_classes, kernel_size=1)
        for dense in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(dense.weight, nonlinearity="relu")
            nn.init.zeros_(dense.bias)  # type: ignore[arg-type]
        for layer in (self.score_fr, self.score_pool3, self.score_pool4):
            nn.init.zeros_(layer.weight)  # as in the paper: scores start at 0
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Features, image_size: tuple[int, int]) -> Tensor:
        """Features to logits (B, num_classes, H, W) for an image of `image_size` (H, W).

        From the scores on in float32 or more, whatever the autocast. In bfloat16 an H100 took five times as long for
        all of it (docs/performance.md); 21 channels, unlike fc6's 4096, are no multiple of what its kernels want.
        """
        h = self.dropout(F.relu(self.fc6(pool(features.conv5_3))))  # (B, fc, H/32, W/32)
        h = self.dropout(F.relu(self.fc7(h)))
        with torch.autocast(h.device.type, enabled=False):
            pool3, pool4 = at_least_float32(features.pool3), at_least_float32(features.pool4)
            return self._fuse(at_least_float32(h), pool4, pool3, image_size)

    def _fuse(self, h: Tensor, pool4: Tensor, pool3: Tensor, image_size: tuple[int, int]) -> Tensor:
        score_fr = self.score_fr(h)  # (B, N, H/32, W/32)
        score_pool4 = self.score_pool4(pool4 * self.skip_scales[0])  # (B, N, H/16, W/16)
        score_pool3 = self.score_pool3(pool3 * self.skip_scales[1])  # (B, N, H/8, W/8)
        if self.caffe_padding:
            upscore2 = upsample_like_caffe(score_fr, UPSAMPLING["upscore2"])
            fused = upscore2 + crop(score_pool4, CAFFE_CROP_POOL4, upscore2.shape[2:])
            upscore_pool4 = upsample_like_caffe(fused, UPSAMPLING["upscore_pool4"])
            fused = upscore_pool4 + crop(score_pool3, CAFFE_CROP_POOL3, upscore_pool4.shape[2:])
            return crop(upsample_like_caffe(fused, UPSAMPLING["upscore8"]), CAFFE_CROP_OUTPUT, image_size)
        # Each map covers what the finer one covers, and up to a cell more on the right and below.
        fused = crop(upsample(score_fr, UPSAMPLING["upscore2"]), 0, score_pool4.shape[2:]) + score_pool4
        fused = crop(upsample(fused, UPSAMPLING["upscore_pool4"]), 0, score_pool3.shape[2:]) + score_pool3
        return crop(upsample(fused, UPSAMPLING["upscore8"]), 0, image_size)  # (B, N, H, W)


class FullyConnected(nn.Conv2d):
    """VGG16's fully connected layers as convolutions with few positions and many weights.

    In 16 bits they are computed as what they are, one matrix product over the windows of all positions: a convolution
    sorts 103 million weights of fc6 anew in each pass, which takes longer than to multiply by them. In float32 the
    convolution is faster. The result is the same but for rounding.
    """

    def __init__(self, in_channels: int, out_channels: int, *, side: int, margin: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=side, padding=margin)
        self.side, self.margin = side, margin  # cells of the window, and of zeros around the map

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, h, w) to (B, out_channels, h', w')."""
        return self.product(x) if x.dtype in (torch.bfloat16, torch.float16) else super().forward(x)

    def product(self, x: Tensor) -> Tensor:
        """The same as one matrix product, whatever the type."""
        padded = F.pad(x, [self.margin] * 4).permute(0, 2, 3, 1)
        windows = padded.unfold(1, self.side, 1).unfold(2, self.side, 1)  # (B, h', w', K, side, side)
        rows = windows.permute(0, 1, 2, 4, 5, 3).flatten(3)  # channels last, as the weights lie in memory
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(rows, weight, self.bias).permute(0, 3, 1, 2)


def crop(x: Tensor, offset: int, size: tuple[int, int] | torch.Size) -> Tensor:
    """The window of `size` (H, W) at `offset` from the top left of (B, N, H', W')."""
    return x[:, :, offset : offset + size[0], offset : offset + size[1]]


def upsample(scores: Tensor, factor: int) -> Tensor:
    """(B, N, h, w) to (B, N, factor h, factor w), bilinear between the centres of cells; beyond the last its value."""
    if scores.is_cuda:
        return upsample_by_products(scores, factor)
    return F.interpolate(scores, scale_factor=factor, mode="bilinear", align_corners=False)


def upsample_by_products(scores: Tensor, factor: int) -> Tensor:
    """The same as two matrix products, along the rows and along the columns.

    For GPUs: where results are to repeat, torch interpolates there by gathering and adding single elements, and sorts
    them in the backward pass.
    """
    with torch.autocast(scores.device.type, enabled=False):
        rows, columns = (_weights(size, factor, like=scores) for size in scores.shape[2:])
        return rows.T @ scores @ columns


def _weights(size: int, factor: int, *, like: Tensor) -> Tensor:
    """(size, factor size): how much of each cell is in each of the new ones."""
    cells = torch.eye(size, dtype=like.dtype, device=like.device)
    return F.interpolate(cells[None], scale_factor=factor, mode="linear", align_corners=False)[0]


def upsample_like_caffe(scores: Tensor, factor: int) -> Tensor:
    """(B, N, h, w) to (B, N, factor (h + 1), factor (w + 1)), bilinear between the centres of cells; beyond the last 0.

    The same as the original's transposed convolution with `bilinear_kernel`, which multiplies each class by N kernels
    of which N - 1 are 0.
    """
    edge = factor // 2
    return upsample(F.pad(scores, [1] * 4), factor)[:, :, edge:-edge, edge:-edge]


def bilinear_kernel(num_classes: int, factor: int) -> Tensor:
    """(N, N, 2 factor, 2 factor): the weight of a transposed convolution of stride `factor` that upsamples bilinearly.

    Source: FCN, section 3.3; `upsample_filt` of the authors' surgery.py.
    """
    size = 2 * factor
    ramp = 1.0 - (torch.arange(size, dtype=torch.float32) - (size - 1) / 2).abs() / factor
    kernel = torch.zeros(num_classes, num_classes, size, size)
    kernel[range(num_classes), range(num_classes)] = torch.outer(ramp, ramp)
    return kernel
