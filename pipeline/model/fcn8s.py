"""FCN8s (Long et al., CVPR 2015) with a multi-label classifier on its last convolution.

Layers keep the names of the Caffe model. Three parts, trained and frozen as wholes: `trunk` (conv1_1 to conv5_3),
`decoder` (fc6 to upscore8) and `classifier` (GAP of pool5, three linear layers). Shapes are written for padding 1;
with padding 100 the canvas is 198 pixels larger on each axis, as in Caffe.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from pipeline.data.loading import RGB_MEAN, RGB_STD
from pipeline.model.batch_norm import BatchNorm2d, recomputation

InputSpace = Literal["imagenet_rgb", "caffe_bgr"]
CAFFE_BGR_MEAN = (104.00699, 116.66877, 122.67892)  # of the images that Caffe's VGG16 saw, 0 to 255
# Convolutions and channels of VGG16's five blocks at width 1.
VGG16_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# Layers whose Grad-CAM has a closed form, and their stride in image pixels.
ATTENTION_STRIDES = {"conv5_3": 16, "pool5": 32}

# Caffe's crops with padding 100: skip scores and output are cut to the upsampled map at these offsets.
CAFFE_CROP_POOL4, CAFFE_CROP_POOL3, CAFFE_CROP_OUTPUT = 5, 9, 31
# With padding 1 the upsampled map is the larger one; its border is cut to the skip score or to the image.
CROP_UPSCORE2, CROP_UPSCORE8 = 1, 4


class Features(NamedTuple):
    """Activations of the trunk that the other parts read."""

    pool3: Tensor  # (B, 256 w, H/8, W/8)
    pool4: Tensor  # (B, 512 w, H/16, W/16)
    conv5_3: Tensor  # (B, 512 w, H/16, W/16), after ReLU


class AttentionGrid(NamedTuple):
    """The cells of the attention layer over the image: they tile a canvas that begins `padding` - 1 before it."""

    stride: int  # pixels
    padding: int  # of conv1_1

    def shape(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in cells for an image of `image_size` (H, W) pixels."""
        height, width = (math.ceil((side + 2 * (self.padding - 1)) / self.stride) for side in image_size)
        return height, width


class Trunk(nn.Module):
    """VGG16's convolutions. Pools in ceil mode, so any input size works.

    With `checkpoint_activations` set, training keeps the output of each of the five blocks alone and computes the rest
    a second time in the backward pass: the same gradients, for less memory and a third more of the trunk's time.
    """

    def __init__(self, *, width: float, batch_norm: bool, padding: int, input_space: InputSpace) -> None:
        super().__init__()
        self.padding = padding
        self.input_space = input_space
        self.batch_norm = batch_norm
        self.checkpoint_activations = False
        in_channels = 3
        for block, (num_convs, full_channels) in enumerate(VGG16_BLOCKS, start=1):
            channels = max(1, int(full_channels * width))
            for conv in range(1, num_convs + 1):
                layer = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=not batch_norm)
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
                self.add_module(f"conv{block}_{conv}", layer)
                if batch_norm:
                    self.add_module(f"bn{block}_{conv}", BatchNorm2d(channels))
                in_channels = channels
        self.out_channels = in_channels

    def forward(self, image: Tensor, *, learn: bool = True) -> Features:
        """(B, 3, H, W) to the features that decoder and classifier read; without `learn`, weights get no gradient."""
        if self.input_space == "caffe_bgr":
            image = to_caffe_bgr(image)
        # Padding 100 as one pad before a padding-1 convolution: no state, and exactly Caffe's result.
        x = F.pad(image, [self.padding - 1] * 4) if self.padding > 1 else image
        outputs = []
        for block in range(1, len(VGG16_BLOCKS) + 1):
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(
                    self._block, x, block, learn,
                    use_reentrant=False, preserve_rng_state=False, context_fn=self._contexts,
                )  # fmt: skip
            else:
                x = self._block(x, block, learn)
            outputs.append(x)
        return Features(pool3=outputs[2], pool4=outputs[3], conv5_3=outputs[4])

    def _block(self, x: Tensor, block: int, learn: bool) -> Tensor:
        """One block and its pool, save pool5."""
        for conv in range(1, VGG16_BLOCKS[block - 1][0] + 1):
            x = run(self.get_submodule(f"conv{block}_{conv}"), x, learn=learn)
            if self.batch_norm:
                x = run(self.get_submodule(f"bn{block}_{conv}"), x, learn=learn)
            x = F.relu(x)
        return pool(x) if block < len(VGG16_BLOCKS) else x

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), recomputation(self)


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
        """Features to logits (B, num_classes, H, W) for an image of `image_size` (H, W)."""
        h = self.dropout(F.relu(self.fc6(pool(features.conv5_3))))  # (B, fc, H/32, W/32)
        h = self.dropout(F.relu(self.fc7(h)))
        upscore2 = self.upscore2(self.score_fr(h))  # (B, N, H/16, W/16)
        score_pool4 = self.score_pool4(features.pool4 * self.skip_scales[0])  # (B, N, H/16, W/16)
        score_pool3 = self.score_pool3(features.pool3 * self.skip_scales[1])  # (B, N, H/8, W/8)
        if self.caffe_padding:
            upscore2 = upscore2 + crop(score_pool4, CAFFE_CROP_POOL4, upscore2.shape[2:])
            upscore_pool4 = self.upscore_pool4(upscore2)  # (B, N, H/8, W/8)
            fused = upscore_pool4 + crop(score_pool3, CAFFE_CROP_POOL3, upscore_pool4.shape[2:])
            return crop(self.upscore8(fused), CAFFE_CROP_OUTPUT, image_size)  # (B, N, H, W)
        fused = crop(upscore2, CROP_UPSCORE2, score_pool4.shape[2:]) + score_pool4
        fused = crop(self.upscore_pool4(fused), CROP_UPSCORE2, score_pool3.shape[2:]) + score_pool3
        return crop(self.upscore8(fused), CROP_UPSCORE8, image_size)  # (B, N, H, W)


class Classifier(nn.Module):
    """Multi-label head: average pooling of pool5, then Linear - ReLU - Linear - ReLU - Linear.

    Args:
        bias: of the two hidden layers. Without, a logit is the sum of its Grad-CAM (at pool5, before the ReLU of Eq. 2)
            and a constant: nothing reaches it that the map does not show. With, what the biases add depends on which
            hidden units are on, which the ground can decide unseen.
    """

    def __init__(self, in_channels: int, hidden_channels: int, num_foreground_classes: int, *, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels, hidden_channels, bias=bias)
        self.fc2 = nn.Linear(hidden_channels, hidden_channels, bias=bias)
        self.score = nn.Linear(hidden_channels, num_foreground_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, 512 w) from `FCN8s.pooled` to logits (B, C)."""
        class_logits: Tensor = self.score(F.relu(self.fc2(F.relu(self.fc1(pooled)))))
        return class_logits


class FCN8s(nn.Module):
    """FCN8s with its classifier.

    Args:
        num_foreground_classes: C; the segmentation has C + 1 classes, background first.
        width: multiple of VGG16's channels.
        fc_channels: channels of fc6 and fc7 (4096 in the paper).
        head_channels: hidden units of the classifier.
        head_bias: biases in its hidden layers, see `Classifier`.
        batch_norm: batch normalisation after each trunk convolution.
        padding: of conv1_1, 1 or 100 (Caffe). The two need different weights; it never changes after construction.
        dropout: probability after fc6 and fc7.
        skip_scales: factors on pool4 and pool3 before scoring; (0.01, 0.0001) for "at once" training.
        input_space: what conv1_1 was trained on. Images come as `imagenet_rgb` whatever it is, normalised by
            data/loading.py; weights from Caffe want `caffe_bgr` and have it made of them.
        attention_layer: whose activations Grad-CAM weighs: conv5_3 (after ReLU, stride 16; the paper's) or pool5 (32).
    """

    PARTS = ("trunk", "decoder", "classifier")

    def __init__(
        self,
        num_foreground_classes: int,
        *,
        width: float = 1.0,
        fc_channels: int = 4096,
        head_channels: int = 1024,
        head_bias: bool = True,
        batch_norm: bool = False,
        padding: int = 1,
        dropout: float = 0.5,
        skip_scales: tuple[float, float] = (1.0, 1.0),
        attention_layer: str = "conv5_3",
        input_space: InputSpace = "imagenet_rgb",
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "width": width,
            "fc_channels": fc_channels,
            "head_channels": head_channels,
            "head_bias": head_bias,
            "batch_norm": batch_norm,
            "padding": padding,
            "dropout": dropout,
            "skip_scales": tuple(skip_scales),
            "attention_layer": attention_layer,
            "input_space": input_space,
        }
        self.num_foreground_classes = num_foreground_classes
        self.attention_layer = attention_layer
        self.attention_grid = AttentionGrid(ATTENTION_STRIDES[attention_layer], padding)
        self.trunk = Trunk(width=width, batch_norm=batch_norm, padding=padding, input_space=input_space)
        self.decoder = Decoder(
            num_foreground_classes + 1,
            width=width,
            fc_channels=fc_channels,
            padding=padding,
            dropout=dropout,
            skip_scales=skip_scales,
        )
        self.classifier = Classifier(self.trunk.out_channels, head_channels, num_foreground_classes, bias=head_bias)

    def features(self, image: Tensor, *, learn: bool = True) -> Features:
        """(B, 3, H, W) normalised RGB to trunk features; without `learn`, the weights get no gradient."""
        features: Features = self.trunk(image, learn=learn)
        return features

    def segment(self, features: Features, image_size: tuple[int, int]) -> Tensor:
        """Features to segmentation logits (B, C + 1, H, W)."""
        seg_logits: Tensor = self.decoder(features, image_size)
        return seg_logits

    def classify(self, conv5_3: Tensor, *, learn: bool = True) -> Tensor:
        """conv5_3 (B, K, h, w) to class logits (B, C), in float32 whatever the autocast; `learn` as in `features`."""
        with torch.autocast(conv5_3.device.type, enabled=False):
            return run(self.classifier, self.pooled(conv5_3), learn=learn)

    @staticmethod
    def pooled(conv5_3: Tensor) -> Tensor:
        """conv5_3 (B, K, h, w) to GAP(pool5), (B, K) float32."""
        return pool(conv5_3.float()).mean(dim=(2, 3))

    def forward(self, image: Tensor, *, segmentation: bool = True) -> tuple[Tensor | None, Tensor]:
        """(B, 3, H, W) to segmentation logits (B, C + 1, H, W), None if not wanted, and class logits (B, C)."""
        features = self.features(image)
        seg_logits = self.segment(features, (image.shape[2], image.shape[3])) if segmentation else None
        return seg_logits, self.classify(features.conv5_3)


def run(module: nn.Module, x: Tensor, *, learn: bool) -> Tensor:
    """`module` of `x`; without `learn`, gradients go through to `x` and the parameters get none."""
    if learn:
        return module(x)  # type: ignore[no-any-return]
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return functional_call(module, parameters, (x,))  # type: ignore[no-any-return]


def to_caffe_bgr(image: Tensor) -> Tensor:
    """(B, 3, H, W) normalised RGB to BGR in 0 to 255 minus CAFFE_BGR_MEAN, what published FCN8s weights were fed."""
    scale = image.new_tensor(RGB_STD).view(3, 1, 1) * 255.0
    offset = image.new_tensor(RGB_MEAN).view(3, 1, 1) * 255.0 - image.new_tensor(CAFFE_BGR_MEAN[::-1]).view(3, 1, 1)
    return (image * scale + offset).flip(1)


def pool(x: Tensor) -> Tensor:
    """VGG16's pooling: 2x2, stride 2, ceil mode."""
    return F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=True)


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
