"""A trained network on one image: class probabilities, segmentation and attention from a single forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.samples import normalise
from pipeline.gain.attention import attention_to_image, class_attention, normalise_attention
from pipeline.gain.view import resized, seen_size
from pipeline.model.fcn8s import FCN8s

PREDICTED = 0.5  # probability from which a class counts as predicted


class Outputs(nn.Module):
    """The three outputs side by side, without autograd: what is served, and what is exported. It resizes nothing.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: FCN8s) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All outputs for a batch.

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
    """The outputs for one image of H x W pixels."""

    class_probs: dict[str, float]  # of every class, in [0, 1]
    segmentation: NDArray[np.uint8]  # (H, W) class values, 0 background
    attention: dict[str, NDArray[np.float32]]  # of each class asked for, (H, W) in [0, 1]


def predict(
    outputs: Outputs,
    class_names: Sequence[str],
    image: NDArray[np.uint8],
    device: torch.device,
    num_attended: int | None = None,
) -> Prediction:
    """Class probabilities, segmentation and attention of an image, which the network sees resized by its scale.

    Args:
        outputs: on `device`.
        class_names: of the C foreground classes, in the order of the network's outputs.
        image: (H, W, 3) RGB of 0 to 255, of any size.
        num_attended: attention of so many of the most probable classes, instead of the predicted ones.
    """
    return predict_batch(outputs, class_names, [image], device, num_attended)[0]


@torch.inference_mode()
def predict_batch(
    outputs: Outputs,
    class_names: Sequence[str],
    images: Sequence[NDArray[np.uint8]],
    device: torch.device,
    num_attended: int | None = None,
) -> list[Prediction]:
    """`predict` of several images of one size in a single forward pass."""
    pixels = torch.stack([normalise(torch.from_numpy(image.copy()).permute(2, 0, 1)) for image in images]).to(device)
    seen = resized(pixels, seen_size(pixels, outputs.model.scale))
    class_probs, *maps = outputs(seen)
    seg_logits, attention = (resized(of_all, (pixels.shape[2], pixels.shape[3])) for of_all in maps)
    values = seg_logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return [
        Prediction(
            dict(zip(class_names, probs, strict=True)),
            values[row],
            {class_names[i]: attention[row, i].cpu().numpy() for i in _attended(probs, num_attended)},
        )
        for row, probs in enumerate(class_probs.tolist())
    ]


def _attended(probs: Sequence[float], count: int | None) -> list[int]:
    if count is None:
        return [index for index, probability in enumerate(probs) if probability >= PREDICTED]
    return sorted(range(len(probs)), key=lambda index: -probs[index])[:count]


def batches(images: Sequence[NDArray[np.uint8]], most_pixels: int) -> list[list[int]]:
    """Indices of images to compute together: of one size, and of `most_pixels` in all; a larger one is alone."""
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for index, image in enumerate(images):
        of_size = groups.setdefault(image.shape, [[]])
        if of_size[-1] and (len(of_size[-1]) + 1) * image.shape[0] * image.shape[1] > most_pixels:
            of_size.append([])
        of_size[-1].append(index)
    return [batch for of_size in groups.values() for batch in of_size]


def probability_table(class_probs: Mapping[str, float]) -> str:
    """The predicted classes with their probabilities, most probable first, as one line."""
    likely = sorted(((p, name) for name, p in class_probs.items() if p >= PREDICTED), reverse=True)
    return ", ".join(f"{name} {p:.2f}" for p, name in likely) or "no class"
