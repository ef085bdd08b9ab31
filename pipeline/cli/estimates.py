"""How much memory and disk a profile needs, estimated from its network and data before anything is computed."""

import math
from contextlib import suppress
from pathlib import Path

from pipeline.base.errors import PipelineError
from pipeline.base.profile import Params
from pipeline.base.sections import EmbeddedData, Voc2012Data
from pipeline.data.manifest import read_manifest
from pipeline.datasets.counterfactual.table import SETS

NUM_CLASSES = 20  # of the estimate: VOC's; the layers that depend on it are small
BYTES_PER_WEIGHT = 16  # weight, gradient and the two moments of Adam, in float32
COPIES_PER_ACTIVATION = 2  # of a layer's output and its ReLU
LAYERS_ALIVE = 4  # without gradients: a layer's input, output, ReLU and scratch
LARGEST_SIDE = 500  # pixels, of an image of VOC
VOC2012_BYTES = 9.0e9  # the archives, their files and DVC's copy of them
BYTES_PER_PIXEL = 3.0  # of an image and its mask on disk: embedded set, palette PNG and JPEG at quality 95
SEPARATED_BYTES_PER_PIXEL = 1.5  # the same of PNG
OBJECTS_PER_IMAGE = 1.5  # of different classes, as in VOC
TEST_IMAGES = {"seg11valid": 736, "val": 1449}


def training_bytes(params: Params) -> int:
    """What a fine-tuning step holds on one device, in bytes: weights with Adam's state, and activations in float32.

    The activations are those of its images, and of one masked image for each.
    """
    training, download = params.finetune, params.download
    images = training.batch_size // (params.runtime.num_ranks * training.accumulate_grad_batches)
    passes = 1.0 + 1.0 / params.attention.masked_stride**2
    side = training.crop_size or (download.image_size if isinstance(download, EmbeddedData) else LARGEST_SIDE)
    weights, outputs = _network(params, (side, side))
    return weights * BYTES_PER_WEIGHT + round(passes * images * sum(outputs) * 4 * COPIES_PER_ACTIVATION)


def evaluation_bytes(params: Params, size: tuple[int, int]) -> int:
    """What the evaluation of a batch of images of `size` (H, W) holds, in bytes: weights and the largest layers."""
    weights, outputs = _network(params, size)
    return 4 * (weights + params.evaluate.batch_size * LAYERS_ALIVE * max(outputs))


def disk_bytes(params: Params, *, data_is_there: bool) -> int:
    """What a run writes, in bytes, with DVC's copies: data, unless they are there, separated test images, models."""
    options = params.download
    if isinstance(options, EmbeddedData):
        counts = (options.num_train, options.num_val, options.num_test, 2 * options.num_counterfactual)
        data = sum(counts) * options.image_size**2 * BYTES_PER_PIXEL
    elif isinstance(options, Voc2012Data) and not data_is_there:
        data = VOC2012_BYTES
    else:
        data = 0.0
    data += _counterfactual_bytes(params)
    num_models = 2 + len(params.variants)  # of pretrain, classify and each variant
    copies = 2 * num_models + 3  # each also in DVC's cache, and one checkpoint with Adam's moments
    return round(data + copies * 4 * _network(params, (32, 32))[0])


def _counterfactual_bytes(params: Params) -> float:
    """Of the images of the stage counterfactual, of which an unknown number of test images sets no limit."""
    options, side, most = params.download, LARGEST_SIDE, math.inf
    if isinstance(options, EmbeddedData):
        side, most = options.image_size, OBJECTS_PER_IMAGE * options.num_test
    elif isinstance(options, Voc2012Data):
        most = OBJECTS_PER_IMAGE * TEST_IMAGES[options.test_split]
    per_class = params.counterfactual.max_per_class
    objects = min(most, NUM_CLASSES * per_class) if per_class else most
    return 2 * len(SETS) * side**2 * SEPARATED_BYTES_PER_PIXEL * (objects if math.isfinite(objects) else 0.0)


def largest_image(params: Params, folder: Path) -> tuple[int, int]:
    """Height and width of the largest image: of the manifest below `folder`, or else of the profile's data set."""
    manifest = folder / "data" / "manifest.csv"
    if manifest.exists():
        with suppress(PipelineError):  # the stages will say what is wrong with it
            row = max(read_manifest(manifest), key=lambda row: row.height * row.width)
            return row.height, row.width
    side = params.download.image_size if isinstance(params.download, EmbeddedData) else LARGEST_SIDE
    return side, side


def _network(params: Params, size: tuple[int, int]) -> tuple[int, list[int]]:
    """Number of weights, and of elements in each layer's output for one image of `size` (H, W); nothing is computed."""
    import torch
    from torch._subclasses import FakeTensorMode

    from pipeline.model.fcn8s import FCN8s

    outputs: list[int] = []

    def count(module: object, _inputs: object, output: object) -> None:
        if getattr(module, "inplace", False):  # takes no memory of its own
            return
        outputs.append(output.numel() if isinstance(output, torch.Tensor) else 0)

    with FakeTensorMode():  # not the device "meta", which knows no autocast
        model = FCN8s(NUM_CLASSES, params.model)
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(count)
        model.segment(model.features(torch.zeros(1, 3, *size)), size)
    return sum(parameter.numel() for parameter in model.parameters()), outputs
