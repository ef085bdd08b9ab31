"""FCN8s (Long et al., CVPR 2015) with a multi-label classifier on its last convolution.

Layers keep the names of the Caffe model. Three parts, trained and frozen as wholes: `trunk` (conv1_1 to conv5_3),
`decoder` (fc6 to the scores) and `classifier` (GAP of pool5, three linear layers). Shapes are written for padding 1;
with padding 100 the canvas is 198 pixels larger on each axis, as in Caffe.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.base.sections import Architecture
from pipeline.model.decoder import Decoder
from pipeline.model.trunk import Features, InputSpace, Trunk, at_least_float32, run

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
        options: see params.yaml for what each means. `padding` of conv1_1 is 1 or 100 (Caffe): the two need different
            weights, and it never changes after construction. `attention_layer` is conv5_3 (after ReLU, stride 16; the
            paper's) or pool5 (stride 32).
        input_space: what conv1_1 was trained on. Images always come as `imagenet_rgb`, normalised by data/samples.py;
            for weights from Caffe the trunk makes `caffe_bgr` of them.
    """

    PARTS = ("trunk", "decoder", "classifier")

    def __init__(
        self, num_foreground_classes: int, options: Architecture, *, input_space: InputSpace = "imagenet_rgb"
    ) -> None:
        super().__init__()
        self.options = options
        self.input_space = input_space
        self.scale = 1.0  # by which images are resized in evaluation and in use, see gain/view.py
        self.num_foreground_classes = num_foreground_classes
        self.attention_layer = options.attention_layer
        self.attention_grid = AttentionGrid(ATTENTION_STRIDES[options.attention_layer], options.padding)
        self.trunk = Trunk(
            width=options.width, batch_norm=options.batch_norm, padding=options.padding, input_space=input_space
        )
        self.decoder = Decoder(
            num_foreground_classes + 1,
            width=options.width,
            fc_channels=options.fc_channels,
            padding=options.padding,
            dropout=options.dropout,
            skip_scales=options.skip_scales,
        )
        self.pool5 = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)  # of the classifier; a module for hooks
        self.classifier = Classifier(
            self.trunk.out_channels, options.head_channels, num_foreground_classes, bias=options.head_bias
        )

    @property
    def architecture(self) -> dict[str, Any]:
        """What a file of weights says of its network: the options by name, and `input_space`."""
        return {**self.options.model_dump(), "input_space": self.input_space}

    def features(self, image: Tensor, *, learn: bool = True) -> Features:
        """(B, 3, H, W) normalised RGB to trunk features; without `learn`, the weights get no gradient."""
        features: Features = self.trunk(image, learn=learn)
        return features

    def segment(self, features: Features, image_size: tuple[int, int]) -> Tensor:
        """Features to segmentation logits (B, C + 1, H, W)."""
        seg_logits: Tensor = self.decoder(features, image_size)
        return seg_logits

    def classify(self, conv5_3: Tensor, *, learn: bool = True) -> Tensor:
        """conv5_3 (B, K, h, w) to class logits (B, C), at least float32 whatever the autocast; `learn` as above."""
        with torch.autocast(conv5_3.device.type, enabled=False):
            return run(self.classifier, self.pooled(conv5_3), learn=learn)

    def pooled(self, conv5_3: Tensor) -> Tensor:
        """conv5_3 (B, K, h, w) to GAP(pool5), (B, K) in float32 or more."""
        pool5: Tensor = self.pool5(at_least_float32(conv5_3))
        return pool5.mean(dim=(2, 3))

    def forward(self, image: Tensor, *, segmentation: bool = True) -> tuple[Tensor | None, Tensor]:
        """(B, 3, H, W) to segmentation logits (B, C + 1, H, W), None if not wanted, and class logits (B, C)."""
        features = self.features(image)
        seg_logits = self.segment(features, (image.shape[2], image.shape[3])) if segmentation else None
        return seg_logits, self.classify(features.conv5_3)
