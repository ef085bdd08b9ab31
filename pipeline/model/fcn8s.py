"""FCN8s (Long et al., CVPR 2015) with a multi-label classifier on its last convolution.

Layers keep the names of the Caffe model. Three parts, trained and frozen as wholes: `trunk` (conv1_1 to conv5_3),
`decoder` (fc6 to upscore8) and `classifier` (GAP of pool5, three linear layers). Shapes are written for padding 1;
with padding 100 the canvas is 198 pixels larger on each axis, as in Caffe.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.decoder import Decoder
from pipeline.model.trunk import Features, InputSpace, Trunk, pool, run

# Layers whose Grad-CAM has a closed form, and their stride in image pixels.
ATTENTION_STRIDES = {"conv5_3": 16, "pool5": 32}


class AttentionGrid(NamedTuple):
    """The cells of the attention layer over the image: they tile a canvas that begins `padding` - 1 before it."""

    stride: int  # pixels
    padding: int  # of conv1_1

    def shape(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in cells for an image of `image_size` (H, W) pixels."""
        height, width = (math.ceil((side + 2 * (self.padding - 1)) / self.stride) for side in image_size)
        return height, width


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
