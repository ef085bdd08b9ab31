"""Weights from elsewhere as a network of this project: VGG16 of torchvision, FCN8s of pytorch-fcn, or our own files.

Each kind of weights has a description of what it was trained with, which comes along with the tensors or refuses a
network that differs: that Caffe's weights want BGR need not be remembered.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.base.errors import PipelineError, warn
from pipeline.base.sections import Architecture
from pipeline.model.fcn8s import FCN8s
from pipeline.model.foreign_files import read_checkpoint
from pipeline.model.trunk import VGG16_BLOCKS, InputSpace
from pipeline.model.weights import build_model, check_tensors, load_weights, without_upsampling

# What model.* of params.yaml must say for the weights to mean what they meant: of the trunk, and of the decoder.
TRUNK_TRAINED_WITH: dict[str, dict[str, Any]] = {
    "random": {},
    "imagenet": {"batch_norm": False},
    "pytorch_fcn8s": {"batch_norm": False},
    "pytorch_fcn8s_atonce": {"batch_norm": False},
}
AT_ONCE = (0.01, 0.0001)
DECODER_TRAINED_WITH: dict[str, dict[str, Any]] = {
    "imagenet": {},
    "pytorch_fcn8s": {"padding": 100, "skip_scales": (1.0, 1.0)},
    "pytorch_fcn8s_atonce": {"padding": 100, "skip_scales": AT_ONCE},
}
INPUT_SPACES: dict[str, InputSpace] = {
    "random": "imagenet_rgb",
    "imagenet": "imagenet_rgb",
    "pytorch_fcn8s": "caffe_bgr",
    "pytorch_fcn8s_atonce": "caffe_bgr",
}


def initial_model(
    source: str,
    path: Path | None,
    architecture: Architecture,
    class_names: tuple[str, ...],
    *,
    seed: int,
    segments: bool = False,
) -> FCN8s:
    """The network that pretraining starts from.

    Where fc6 and fc7 are not in the file, or of another width than `architecture` has, the trunk alone is imported, and
    one line says what is random.

    Args:
        source: `random`; `imagenet`, torchvision's VGG16: trunk, fc6 and fc7, everything else random; `pytorch_fcn8s`
            or `pytorch_fcn8s_atonce`, Caffe's names as wkentaro/pytorch-fcn has them: trunk and decoder, the classifier
            random; or `safetensors`, a network of this project.
        path: the file; None for random.
        class_names: foreground classes of the data.
        seed: of what stays random.
        segments: it must segment as it is, since no epoch of pretraining follows.

    Raises:
        PipelineError: the file is missing or damaged, a tensor of it is missing, unknown, of another shape or not
            finite, or the network that params.yaml describes is not the one that the weights were trained in.
    """
    if source == "safetensors":
        assert path is not None
        return _own_model(path, architecture, class_names)
    _check_architecture(source, architecture, TRUNK_TRAINED_WITH[source])
    model = build_model(architecture, class_names, seed=seed, input_space=INPUT_SPACES[source])
    if path is None:
        return model
    tensors = read_checkpoint(path)
    renamed = _from_vgg16(tensors, model) if source == "imagenet" else _from_pytorch_fcn(tensors)
    state = model.state_dict()
    imported: tuple[str, ...] = (
        ("trunk.", "decoder.fc6.", "decoder.fc7.") if source == "imagenet" else ("trunk.", "decoder.")
    )
    if (reason := _unusable_decoder(renamed, state)) is None:
        _check_architecture(source, architecture, DECODER_TRAINED_WITH[source])
        renamed = without_upsampling(path, renamed, len(class_names) + 1)
    else:
        imported, renamed = ("trunk.",), {name: t for name, t in renamed.items() if not name.startswith("decoder.")}
    check_tensors(path, {name: tensor for name, tensor in state.items() if name.startswith(imported)}, renamed)
    if (broken := next((name for name, t in renamed.items() if not torch.isfinite(t).all()), None)) is not None:
        raise PipelineError(f"{path}: {broken} holds values that are not finite; take another file")
    if reason is not None:
        _say_what_is_random(path, reason, source, architecture, segments=segments)
    model.load_state_dict({**state, **renamed})
    return model


def _check_architecture(source: str, architecture: Architecture, trained_with: Mapping[str, Any]) -> None:
    for key, value in trained_with.items():
        if (found := getattr(architecture, key)) != value:
            shown = list(value) if isinstance(value, tuple) else value
            raise PipelineError(
                f"params.yaml: model.{key} is {found!r}, but weights of source {source} were trained with {shown!r}; "
                "set it to that"
            )


def _unusable_decoder(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Why fc6 and fc7 of a file, and what is trained on them, cannot be used; None if they can."""
    for layer in ("fc6", "fc7"):
        name = f"decoder.{layer}.weight"
        if name not in found:
            return f"the file has no {layer}"
        if (channels := next(iter(found[name].shape), 0)) != (wanted := len(expected[name])):
            return f"{layer} has {channels} channels, and model.fc_channels of params.yaml is {wanted}"
    return None


def _say_what_is_random(path: Path, reason: str, source: str, architecture: Architecture, *, segments: bool) -> None:
    random = "fc6, fc7 and all scores" if source == "imagenet" else "the whole decoder"
    if segments:
        raise PipelineError(
            f"{path}: {reason}, so the trunk alone can be taken, which cannot segment; set pretrain.num_epochs of "
            "params.yaml to at least 1"
        )
    print(f"{path}: the trunk alone is taken ({reason}); random at first: {random}", flush=True)
    if INPUT_SPACES[source] == "caffe_bgr" and architecture.skip_scales != AT_ONCE:
        warn(
            f"params.yaml: model.skip_scales is {list(architecture.skip_scales)}, but activations of weights from "
            f"Caffe are in the hundreds: a decoder that starts at random learns on them with {list(AT_ONCE)}"
        )


def _from_pytorch_fcn(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """pytorch-fcn has our names, after Caffe's, but no parts."""
    return {f"{'trunk' if name.startswith('conv') else 'decoder'}.{name}": tensor for name, tensor in tensors.items()}


def _from_vgg16(tensors: Mapping[str, Tensor], model: FCN8s) -> dict[str, Tensor]:
    """torchvision numbers its layers; fc6 is a matrix over the 7 x 7 cells of pool5, here a convolution of them."""
    names, number = {}, 0
    whole = any(name.startswith("features.") for name in tensors)  # else the convolutions were saved alone
    features = "features." if whole else ""
    for block, (num_convs, _) in enumerate(VGG16_BLOCKS, start=1):
        for conv in range(1, num_convs + 1):
            names[f"{features}{number}"] = f"trunk.conv{block}_{conv}"
            number += 2  # convolution and ReLU
        number += 1  # pool
    names |= {"classifier.0": "decoder.fc6", "classifier.3": "decoder.fc7"}
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer == "classifier.6":  # scores of ImageNet's 1000 classes
            continue
        target = f"{names[layer]}.{kind}" if layer in names else name
        shape = model.state_dict()[target].shape if target in model.state_dict() else tensor.shape
        if target.startswith("decoder.") and tensor.numel() == shape.numel():
            tensor = tensor.view(shape)
        renamed[target] = tensor
    return renamed


def _own_model(path: Path, architecture: Architecture, class_names: tuple[str, ...]) -> FCN8s:
    model, names = load_weights(path)
    if names != class_names:
        raise PipelineError(
            f"{path}: its classes are {', '.join(names)}; those of the data are {', '.join(class_names)}"
            "; import weights of the same classes"
        )
    for key, value in architecture.model_dump().items():
        if model.architecture[key] != value:
            raise PipelineError(
                f"params.yaml: model.{key} is {value!r}, but {path} holds a network with {model.architecture[key]!r}; "
                "set it to that"
            )
    return model
