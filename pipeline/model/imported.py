"""Weights from elsewhere as a network of this project: VGG16 of torchvision, FCN8s of pytorch-fcn, or our own files.

Each kind of weights has a description of what it was trained with, which comes along with the tensors or refuses a
network that differs: that Caffe's weights want BGR need not be remembered. Pickled code is never executed.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.base.errors import PipelineError
from pipeline.base.sections import Architecture
from pipeline.model.fcn8s import FCN8s
from pipeline.model.trunk import VGG16_BLOCKS, InputSpace
from pipeline.model.weights import build_model, check_tensors, load_weights

# What model.* of params.yaml must say for the weights to mean what they meant.
TRAINED_WITH: dict[str, dict[str, Any]] = {
    "random": {},
    "imagenet": {"batch_norm": False},
    "pytorch_fcn8s": {"batch_norm": False, "padding": 100, "skip_scales": (1.0, 1.0)},
    "pytorch_fcn8s_atonce": {"batch_norm": False, "padding": 100, "skip_scales": (0.01, 0.0001)},
}
INPUT_SPACES: dict[str, InputSpace] = {
    "random": "imagenet_rgb",
    "imagenet": "imagenet_rgb",
    "pytorch_fcn8s": "caffe_bgr",
    "pytorch_fcn8s_atonce": "caffe_bgr",
}


def initial_model(
    source: str, path: Path | None, architecture: Architecture, class_names: tuple[str, ...], *, seed: int
) -> FCN8s:
    """The network that pretraining starts from.

    Args:
        source: `random`; `imagenet`, torchvision's VGG16: trunk, fc6 and fc7, everything else random; `pytorch_fcn8s`
            or `pytorch_fcn8s_atonce`, checkpoints of wkentaro/pytorch-fcn: trunk and decoder, the classifier random;
            or `safetensors`, a network of this project.
        path: the file; None for random.
        class_names: foreground classes of the data.
        seed: of what stays random.

    Raises:
        PipelineError: the file is missing or damaged, a tensor of it is missing, unknown or of another shape, or the
            network that params.yaml describes is not the one that the weights were trained in.
    """
    if source == "safetensors":
        assert path is not None
        return _own_model(path, architecture, class_names)
    for key, value in TRAINED_WITH[source].items():
        if (found := getattr(architecture, key)) != value:
            shown = list(value) if isinstance(value, tuple) else value
            raise PipelineError(
                f"params.yaml: model.{key} is {found!r}, but weights of source {source} were trained with {shown!r}; "
                "set it to that"
            )
    model = build_model(architecture, class_names, seed=seed, input_space=INPUT_SPACES[source])
    if path is None:
        return model
    tensors = read_checkpoint(path)
    renamed = _from_vgg16(tensors, model) if source == "imagenet" else _from_pytorch_fcn(tensors)
    state = model.state_dict()
    imported = ("trunk.", "decoder.") if source != "imagenet" else ("trunk.", "decoder.fc6.", "decoder.fc7.")
    check_tensors(path, {name: tensor for name, tensor in state.items() if name.startswith(imported)}, renamed)
    model.load_state_dict({**state, **renamed})
    return model


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth file by name: a state dict, or a training checkpoint that holds one.

    Raises:
        PipelineError: the file is missing, damaged, holds objects other than tensors and numbers, or no state dict.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise PipelineError(f"{path}: weights missing; run `dvc repro download`, which fetches them") from None
    except pickle.UnpicklingError as error:
        # With weights_only, torch refuses whatever would have to be executed.
        reason = str(error).split("\n")[0]
        raise PipelineError(
            f"{path}: not read, since it holds more than tensors ({reason}); export its state dict"
        ) from None
    except Exception as error:  # torch has one for every kind of damage
        reason = str(error).split("\n")[0]
        raise PipelineError(f"{path}: not a readable checkpoint ({reason}); fetch it again") from error
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise PipelineError(
            f"{path}: holds no state dict (names and tensors); export one with torch.save(model.state_dict())"
        )
    return dict(content)


def _from_pytorch_fcn(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """pytorch-fcn has our names, after Caffe's, but no parts."""
    return {f"{'trunk' if name.startswith('conv') else 'decoder'}.{name}": tensor for name, tensor in tensors.items()}


def _from_vgg16(tensors: Mapping[str, Tensor], model: FCN8s) -> dict[str, Tensor]:
    """torchvision numbers its layers; fc6 is a matrix over the 7 x 7 cells of pool5, here a convolution of them."""
    names, number = {}, 0
    for block, (num_convs, _) in enumerate(VGG16_BLOCKS, start=1):
        for conv in range(1, num_convs + 1):
            names[f"features.{number}"] = f"trunk.conv{block}_{conv}"
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
