"""FCN8s' decoder: class scores at three strides, fused and upsampled to the image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.trunk import Features, at_least_float32, pool

# Caffe's crops with padding 100: skip scores and output are cut to the upsampled map at these offsets.
CAFFE_CROP_POOL4, CAFFE_CROP_POOL3, CAFFE_CROP_OUTPUT = 5, 9, 31
# With padding 1 the upsampled map is the larger one; its border is cut to the skip score or to the image.
CROP_UPSCORE2, CROP_UPSCORE8 = 1, 4


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
        self.fc6 = nn.Conv2d(pool5_channels, fc_channels, kernel_size=7, padding=0 if self.caffe_padding else 3)
        self.fc7 = nn.Conv2d(fc_channels, fc_channels, kernel_size=1)
        self.dropout = nn.Dropout2d(dropout)
        self.score_fr = nn.Conv2d(fc_channels, num_classes, kernel_size=1)
        self.score_pool3 = nn.Conv2d(pool3_channels, num_classes, kernel_size=1)
        self.score_pool4 = nn.Conv2d(pool4_channels, num_classes, kernel_size=1)
        self.upscore2 = bilinear_upsampling(num_classes, factor=2)
        self.upscore_pool4 = bilinear_upsampling(num_classes, factor=2)
        self.upscore8 = bilinear_upsampling(num_classes, factor=8)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
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
        upscore2 = self.upscore2(self.score_fr(h))  # (B, N, H/16, W/16)
        score_pool4 = self.score_pool4(pool4 * self.skip_scales[0])  # (B, N, H/16, W/16)
        score_pool3 = self.score_pool3(pool3 * self.skip_scales[1])  # (B, N, H/8, W/8)
        if self.caffe_padding:
            upscore2 = upscore2 + crop(score_pool4, CAFFE_CROP_POOL4, upscore2.shape[2:])
            upscore_pool4 = self.upscore_pool4(upscore2)  # (B, N, H/8, W/8)
            fused = upscore_pool4 + crop(score_pool3, CAFFE_CROP_POOL3, upscore_pool4.shape[2:])
            return crop(self.upscore8(fused), CAFFE_CROP_OUTPUT, image_size)  # (B, N, H, W)
        fused = crop(upscore2, CROP_UPSCORE2, score_pool4.shape[2:]) + score_pool4
        fused = crop(self.upscore_pool4(fused), CROP_UPSCORE2, score_pool3.shape[2:]) + score_pool3
        return crop(self.upscore8(fused), CROP_UPSCORE8, image_size)  # (B, N, H, W)


def crop(x: Tensor, offset: int, size: tuple[int, int] | torch.Size) -> Tensor:
    """The window of `size` (H, W) at `offset` from the top left of (B, N, H', W')."""
    return x[:, :, offset : offset + size[0], offset : offset + size[1]]


def bilinear_upsampling(num_classes: int, *, factor: int) -> nn.ConvTranspose2d:
    """Transposed convolution that upsamples each class bilinearly; fixed, as in Caffe (lr_mult 0)."""
    size = 2 * factor
    layer = nn.ConvTranspose2d(num_classes, num_classes, kernel_size=size, stride=factor, bias=False)
    positions = torch.arange(size, dtype=torch.float32)
    ramp = 1.0 - (positions - (size - 1) / 2).abs() / factor
    kernel = torch.zeros_like(layer.weight)
    kernel[range(num_classes), range(num_classes)] = torch.outer(ramp, ramp)
    layer.weight = nn.Parameter(kernel, requires_grad=False)
    return layer
