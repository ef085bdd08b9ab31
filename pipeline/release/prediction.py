"""A trained network on one image: class probabilities, segmentation and attention from a single forward pass."""

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from pipeline.base.errors import PipelineError
from pipeline.data.samples import normalise
from pipeline.gain.attention import attention_to_image, class_attention, normalise_attention
from pipeline.model.fcn8s import FCN8s

MAX_BYTES = 20 * 2**20  # of an encoded image
MAX_PIXELS = 8_000_000  # of an image; the first layer alone keeps 2 GB of them at full width
FORMATS = ("PNG", "JPEG")
PREDICTED = 0.5  # probability from which a class counts as predicted


class Outputs(nn.Module):
    """The three outputs side by side, without autograd: what is served, and what is exported.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: FCN8s) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Everything that the network has to say of a batch.

        Args:
            image: (B, 3, H, W) float32, normalised RGB.

        Returns:
            class_probs (B, C) in [0, 1]; seg_logits (B, C + 1, H, W), background first; attention (B, C, H, W) in
            [0, 1], Grad-CAM of every class (Eqs. 1 and 2) over its maximum. All float32.
        """
        size = (image.shape[2], image.shape[3])
        features = self.model.features(image)
        class_probs = self.model.classify(features.conv5_3).sigmoid()
        seg_logits = self.model.segment(features, size)
        maps, _ = normalise_attention(class_attention(self.model, features.conv5_3))
        attention = attention_to_image(maps.flatten(0, 1), size, self.model.attention_grid)
        return class_probs, seg_logits, attention.view(maps.shape[0], maps.shape[1], *size)


@dataclass(frozen=True)
class Prediction:
    """Of one image of H x W pixels."""

    class_probs: dict[str, float]  # of every class, in [0, 1]
    segmentation: NDArray[np.uint8]  # (H, W) class values, 0 background
    attention: dict[str, NDArray[np.float32]]  # of each predicted class, (H, W) in [0, 1]


@torch.inference_mode()
def predict(outputs: Outputs, class_names: Sequence[str], image: NDArray[np.uint8], device: torch.device) -> Prediction:
    """All that is known of an image, (H, W, 3) RGB of any size; `outputs` lies on `device`."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
    class_probs, seg_logits, attention = outputs(normalise(pixels)[None].to(device))
    probs = class_probs[0].tolist()
    return Prediction(
        dict(zip(class_names, probs, strict=True)),
        seg_logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy(),
        {name: attention[0, i].cpu().numpy() for i, name in enumerate(class_names) if probs[i] >= PREDICTED},
    )


def read_image(content: bytes, name: str = "image") -> NDArray[np.uint8]:
    """A PNG or JPEG file as (H, W, 3) RGB, refused before it is decoded if it is too large.

    Raises:
        PipelineError: the file is empty, too large, of another format, or damaged.
    """
    if len(content) > MAX_BYTES:
        raise PipelineError(f"{name}: {len(content)} bytes; at most {MAX_BYTES} are taken")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image.width, image.height, name)
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:  # its text is the address of a buffer
        raise PipelineError(f"{name}: no readable {' or '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PipelineError(f"{name}: no readable {' or '.join(FORMATS)} ({error})") from error


def served_image(value: Any, name: str) -> NDArray[np.uint8]:
    """An image as a request brings it: base64 of a PNG or JPEG file, or nested lists (H, W, 3) of 0 to 255.

    Raises:
        PipelineError: it is neither, or see `read_image`.
    """
    if isinstance(value, str):
        if len(value) > MAX_BYTES * 4 // 3 + 4:
            raise PipelineError(f"{name}: {len(value)} characters; at most {MAX_BYTES} bytes are taken")
        try:
            return read_image(base64.b64decode(value, validate=True), name)
        except binascii.Error as error:
            raise PipelineError(f"{name}: not base64 ({error})") from error
    try:
        pixels = np.asarray(value)
    except ValueError as error:
        raise PipelineError(f"{name}: rows of unequal length ({error})") from error
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not np.issubdtype(pixels.dtype, np.number):
        raise PipelineError(
            f"{name}: neither base64 text nor numbers of shape (H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    _check_size(pixels.shape[1], pixels.shape[0], name)
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 255):
        raise PipelineError(f"{name}: pixels must lie in 0 to 255")
    return pixels.astype(np.uint8)


def palette_png(classes: NDArray[np.uint8], palette: Sequence[int]) -> bytes:
    """Class values (H, W) as a palette PNG."""
    image = Image.fromarray(classes).convert("P")
    image.putpalette(list(palette))
    return _png(image)


def grey_png(attention: NDArray[np.floating]) -> bytes:
    """Attention (H, W) in [0, 1] as a grey PNG, 0 to 255."""
    return _png(Image.fromarray((attention * 255).round().astype(np.uint8)))


def run_lengths(classes: NDArray[np.uint8], class_names: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """Masks of the classes found in a segmentation (H, W), as COCO's uncompressed run lengths.

    Returns:
        Class name to {"size": [H, W], "counts": [...]}: lengths of runs outside and inside the mask in turn, column
        after column, the first outside.
    """
    pixels = classes.ravel(order="F")
    ends = np.append(np.flatnonzero(np.diff(pixels)) + 1, pixels.size)
    starts, values = np.insert(ends[:-1], 0, 0), pixels[np.insert(ends[:-1], 0, 0)]
    found = {}
    for value in np.unique(values[values > 0]):
        # Where the mask begins and ends; runs of the class never touch, since equal neighbours are one run.
        bounds = np.stack([starts[values == value], ends[values == value]], axis=1).ravel()
        counts = np.diff(bounds, prepend=0, append=pixels.size)
        counts = counts[:-1] if bounds[-1] == pixels.size else counts
        found[class_names[value - 1]] = {"size": list(classes.shape), "counts": counts.tolist()}
    return found


def probability_table(class_probs: Mapping[str, float]) -> str:
    """The predicted classes with their probabilities, the likeliest first."""
    likely = sorted(((p, name) for name, p in class_probs.items() if p >= PREDICTED), reverse=True)
    return ", ".join(f"{name} {p:.2f}" for p, name in likely) or "no class"


def _check_size(width: int, height: int, name: str) -> None:
    if width * height == 0 or width * height > MAX_PIXELS:
        raise PipelineError(f"{name}: {width} x {height} pixels; at most {MAX_PIXELS} pixels are taken")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
