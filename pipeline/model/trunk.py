"""VGG16's convolutions, which segmentation and classification share."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from pipeline.data.images import RGB_MEAN, RGB_STD
from pipeline.model.batch_norm import BatchNorm2d, recomputation

InputSpace = Literal["imagenet_rgb", "caffe_bgr"]
CAFFE_BGR_MEAN = (104.00699, 116.66877, 122.67892)  # of the images that Caffe's VGG16 saw, 0 to 255
# Convolutions and channels of VGG16's five blocks at width 1.
VGG16_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class Features(NamedTuple):
    """Activations of the trunk that the other parts read."""

    pool3: Tensor  # (B, 256 w, H/8, W/8)
    pool4: Tensor  # (B, 512 w, H/16, W/16)
    conv5_3: Tensor  # (B, 512 w, H/16, W/16), after ReLU


class Trunk(nn.Module):
    """VGG16's convolutions. Pools in ceil mode, so any input size works.

    Every ReLU is a module with Caffe's name. The output of `relu5_3` is what attention is computed from, so that
    pytorch-grad-cam and captum, hooked on it, give the same maps (docs/method.md). It alone does not write over its
    input: into fresh memory, a CPU takes 8 % longer for all of them.

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
                last = (block, conv) == (len(VGG16_BLOCKS), num_convs)
                self.add_module(f"relu{block}_{conv}", nn.ReLU(inplace=not last))
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
            x = self.get_submodule(f"relu{block}_{conv}")(x)
        return pool(x) if block < len(VGG16_BLOCKS) else x

    def layers_before_last(self, num_blocks: int) -> dict[str, nn.Module]:
        """By name, the layers with weights of all blocks but the last `num_blocks` of five."""
        names = [
            f"{kind}{block}_{conv}"
            for block in range(1, len(VGG16_BLOCKS) - num_blocks + 1)
            for conv in range(1, VGG16_BLOCKS[block - 1][0] + 1)
            for kind in (("conv", "bn") if self.batch_norm else ("conv",))
        ]
        return {name: self.get_submodule(name) for name in names}

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), recomputation(self)


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


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, or a copy in float32 if its type has fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pool(x: Tensor) -> Tensor:
    """VGG16's pooling: 2x2, stride 2, ceil mode."""
    return F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=True)
