"""Weights on disk as safetensors: no pickle, the network's description beside the tensors, atomic writes."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.base.errors import PipelineError
from pipeline.base.files import atomic_file
from pipeline.base.messages import one_line
from pipeline.base.sections import Architecture
from pipeline.model.fcn8s import FCN8s
from pipeline.model.trunk import InputSpace


def build_model(
    architecture: Architecture, class_names: tuple[str, ...], *, seed: int, input_space: InputSpace = "imagenet_rgb"
) -> FCN8s:
    """A freshly initialised network whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well, for good
        return FCN8s(len(class_names), architecture, input_space=input_space)


def save_weights(path: Path, model: FCN8s, class_names: tuple[str, ...]) -> None:
    """Write parameters and buffers with what `load_weights` needs to build the network again. Atomic."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # One key: safetensors writes several in random order, and equal weights must be equal files.
    network: dict[str, Any] = {"architecture": model.architecture, "class_names": class_names}
    if model.scale != 1.0:
        network["scale"] = model.scale
    metadata = {"network": json.dumps(network)}
    try:
        with atomic_file(path) as partial:
            save_file(tensors, partial, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise PipelineError(
            f"{path}: weights could not be written ({error}); free some disk space and rerun"
        ) from error


def load_weights(path: Path) -> tuple[FCN8s, tuple[str, ...]]:
    """The network in `path`, with the scale at which it looks at images, and its foreground class names; on the CPU.

    Raises:
        PipelineError: the file is missing, damaged, or a tensor is missing, unknown or of another shape.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise PipelineError(
            f"{path}: weights missing; run `dvc repro`, or `dvc pull` where a remote is set up"
        ) from None
    except (SafetensorError, OSError) as error:
        raise PipelineError(
            f"{path}: not a readable safetensors file ({error}); run the stage that writes it"
        ) from error
    try:
        network = json.loads(metadata["network"])
        class_names = tuple(str(name) for name in network["class_names"])
        options = dict(network["architecture"])
        input_space = options.pop("input_space")
        if input_space not in get_args(InputSpace):
            raise ValueError(f"input_space {input_space!r} is none of {', '.join(get_args(InputSpace))}")
        with torch.device("meta"):  # no memory, no random numbers: every tensor comes from the file
            model = FCN8s(len(class_names), Architecture.model_validate(options), input_space=input_space)
        model.scale = float(network.get("scale", 1.0))
        if not (math.isfinite(model.scale) and model.scale > 0):
            raise ValueError(f"scale {model.scale} is not above 0")
    except ValidationError as error:
        key, problem = one_line(error, Architecture)
        raise PipelineError(
            f"{path}: does not describe its network ({key}: {problem}); expected weights written by this project"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(
            f"{path}: does not describe its network ({error!r}); expected weights written by this project"
        ) from error
    check_tensors(path, model.state_dict(), tensors)
    model.load_state_dict(tensors, assign=True)
    return model, class_names


def state_digest(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of every parameter and buffer: equal only if nothing moved."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Compare the tensors of a file with those of a network, by name and shape.

    Raises:
        PipelineError: naming the first that is missing, unknown or of another shape.
    """
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise PipelineError(f"{path}: tensor {problems[0]}{more}; these weights belong to another network")
