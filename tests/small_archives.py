"""Small archives in the genuine layout of VOC2012 and SBD, and a slim checkpoint of pytorch-fcn, all at random."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat
from torch import Tensor, nn

from pipeline.data import voc
from pipeline.datasets.sbd import SBD_FOLDER
from pipeline.datasets.voc2012 import VOC2012_FOLDER, VOC_CLASSES, seg11valid

CHANNELS = {"conv1": 4, "conv2": 8, "conv3": 16, "conv4": 32, "conv5": 32}
CONVS = {"conv1": 2, "conv2": 2, "conv3": 3, "conv4": 3, "conv5": 3}
ANNOTATION = """<annotation><folder>VOC2012</folder><filename>{name}.jpg</filename><size><width>{width}</width>
<height>{height}</height><depth>3</depth></size><segmented>1</segmented><object><name>{class_name}</name>
<pose>Left</pose><truncated>1</truncated><difficult>0</difficult><bndbox><xmin>{left}</xmin><ymin>2.6</ymin>
<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin>
<xmax>2</xmax><ymax>2</ymax></bndbox></part></object></annotation>"""


def voc2012_ids(num_train: int, num_val: int) -> tuple[list[str], list[str]]:
    """Ids of train and val; every other one of val is in seg11valid."""
    train = [f"2007_{900000 + i}" for i in range(num_train)]
    val = [seg11valid()[i] if i % 2 else f"2012_{800000 + i}" for i in range(num_val)]
    return train, sorted(val)


def write_voc2012(
    path: Path,
    train: list[str],
    val: list[str],
    *,
    others: Iterable[str] = (),
    without_mask: Iterable[str] = (),
    sizes: tuple[int, int] = (40, 72),
) -> Path:
    """VOCtrainval_11-May-2012.tar with these images, and others that no split lists and that have no mask.

    Args:
        sizes: of the sides of an image, in pixels.
    """
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number, image_id in enumerate([*train, *val, *others]):
            height, width = (int(side) for side in rng.integers(*sizes, size=2, endpoint=True))
            class_value = number % len(VOC_CLASSES) + 1
            mask = np.zeros((height, width), np.uint8)
            mask[height // 4 : height // 2, width // 4 : width // 2] = voc.IGNORE_INDEX
            mask[height // 4 + 1 : height // 2 - 1, width // 4 + 1 : width // 2 - 1] = class_value
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            image[mask == class_value] = class_value * 12
            text = ANNOTATION.format(
                name=image_id, width=width, height=height, class_name=VOC_CLASSES[class_value - 1],
                left=width // 4, right=width // 2, bottom=height // 2,
            )  # fmt: skip
            _add(tar, f"{VOC2012_FOLDER}/JPEGImages/{image_id}.jpg", encoded(image, "JPEG"))
            _add(tar, f"{VOC2012_FOLDER}/Annotations/{image_id}.xml", text.encode())
            if image_id not in {*others, *without_mask}:
                _add(tar, f"{VOC2012_FOLDER}/SegmentationClass/{image_id}.png", encoded(mask, "PNG"))
                _add(tar, f"{VOC2012_FOLDER}/SegmentationObject/{image_id}.png", encoded(mask, "PNG"))
        for split, ids in {"train": train, "val": val, "trainval": [*train, *val]}.items():
            _add(tar, f"{VOC2012_FOLDER}/ImageSets/Segmentation/{split}.txt", "".join(f"{i}\n" for i in ids).encode())
    return path


def write_sbd(path: Path, masks: dict[str, np.ndarray], train: list[str], val: list[str]) -> Path:
    """benchmark.tgz with the masks of these images, as Matlab files."""
    with tarfile.open(path, "w:gz") as tar:
        for image_id, mask in masks.items():
            buffer = io.BytesIO()
            savemat(buffer, {"GTcls": {"Segmentation": mask, "CategoriesPresent": np.unique(mask)}})
            _add(tar, f"{SBD_FOLDER}/cls/{image_id}.mat", buffer.getvalue())
        for split, ids in {"train": train, "val": val}.items():
            _add(tar, f"{SBD_FOLDER}/{split}.txt", "".join(f"{i}\n" for i in ids).encode())
    return path


def pytorch_fcn_state(num_classes: int = 21) -> dict[str, Tensor]:
    """A state dict with the keys of pytorch-fcn's FCN8s, slim, of random numbers that keep activations alive."""
    generator = torch.Generator().manual_seed(0)

    def layer(name: str, out: int, into: int, size: int) -> dict[str, Tensor]:
        deviation = (2.0 / (into * size * size)) ** 0.5
        weight = torch.randn(out, into, size, size, generator=generator) * deviation
        return {f"{name}.weight": weight, f"{name}.bias": torch.randn(out, generator=generator) * 0.1}

    state, into = {}, 3
    for block, channels in CHANNELS.items():
        for conv in range(1, CONVS[block] + 1):
            state |= layer(f"{block}_{conv}", channels, into, 3)
            into = channels
    state |= layer("fc6", 12, 32, 7) | layer("fc7", 12, 12, 1) | layer("score_fr", num_classes, 12, 1)
    state |= layer("score_pool3", num_classes, 16, 1) | layer("score_pool4", num_classes, 32, 1)
    for name, size in (("upscore2", 4), ("upscore8", 16), ("upscore_pool4", 4)):
        state[f"{name}.weight"] = _bilinear(num_classes, size)
    return state


def _bilinear(num_classes: int, size: int) -> Tensor:
    """The weight of an upsampling layer as the authors of FCN fill it, for an even size."""
    rows, columns = np.ogrid[:size, :size]
    half = size // 2
    kernel = (1 - abs(rows - (half - 0.5)) / half) * (1 - abs(columns - (half - 0.5)) / half)
    weight = np.zeros((num_classes, num_classes, size, size), np.float32)
    weight[range(num_classes), range(num_classes)] = kernel
    return torch.from_numpy(weight)


def encoded(pixels: np.ndarray, form: str) -> bytes:
    """An RGB picture as JPEG, or a mask as palette PNG."""
    image = Image.fromarray(pixels)
    if form == "PNG":
        image = image.convert("P")
        image.putpalette(voc.voc_palette())
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def slim_vgg16() -> nn.Module:
    """torchvision's own VGG16, at a sixteenth of its width."""
    from torchvision.models.vgg import VGG

    layers: list[nn.Module] = []
    into = 3
    for block, channels in CHANNELS.items():
        for _ in range(CONVS[block]):
            layers += [nn.Conv2d(into, channels, 3, padding=1), nn.ReLU()]
            into = channels
        layers.append(nn.MaxPool2d(2, stride=2))
    vgg = VGG(nn.Sequential(*layers))
    vgg.classifier[0], vgg.classifier[3], vgg.classifier[6] = (
        nn.Linear(32 * 49, 12), nn.Linear(12, 12), nn.Linear(12, 1000),
    )  # fmt: skip
    return vgg.eval()
