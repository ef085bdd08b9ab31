"""Weights on disk as safetensors: no pickle, the network's description beside the tensors, atomic writes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.base.errors import PipelineError, printable
from pipeline.base.files import atomic_file, content_other_than_a_file
from pipeline.base.messages import one_line
from pipeline.base.ranges import Section
from pipeline.base.sections import Architecture, Resizing
from pipeline.data.voc import MOST_CLASSES
from pipeline.model.decoder import UPSAMPLING, bilinear_kernel
from pipeline.model.fcn8s import FCN8s
from pipeline.model.trunk import InputSpace


class _Network(Section):
    """What a file of weights says of its network."""

    architecture: Architecture
    input_space: InputSpace
    class_names: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=MOST_CLASSES)]
    scale: Resizing = 1.0

    @field_validator("class_names")
    @classmethod
    def _names_differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if "" in names or len(set(names)) < len(names):
            raise ValueError("an empty name, or one that comes twice")
        return names


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
        if (other := content_other_than_a_file(path)) is not None:
            raise PipelineError(f"{path}: {other}, not weights: save what the page leads to")
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
    network = _described(path, metadata)
    with torch.device("meta"):  # no memory, no random numbers: every tensor comes from the file
        model = FCN8s(len(network.class_names), network.architecture, input_space=network.input_space)
    model.scale = network.scale
    tensors = without_upsampling(path, tensors, len(network.class_names) + 1)
    check_tensors(path, model.state_dict(), tensors)
    model.load_state_dict(tensors, assign=True)
    return model, network.class_names


def _described(path: Path, metadata: Mapping[str, str]) -> _Network:
    """What a file says of its network.

    Raises:
        PipelineError: nothing, or what this project does not write.
    """
    try:
        network = json.loads(metadata["network"])
        if isinstance(network, dict) and isinstance(network.get("architecture"), dict):
            architecture = dict(network["architecture"])
            network = {**network, "input_space": architecture.pop("input_space", None), "architecture": architecture}
        return _Network.model_validate(network)
    except ValidationError as error:
        problem = ": ".join(filter(None, one_line(error, _Network)))
    except KeyError:
        problem = "its metadata has no `network`"
    except (ValueError, RecursionError) as error:  # of JSON: damaged, with a number too long, or nested too deep
        problem = str(error)
    raise PipelineError(
        f"{path}: does not describe its network ({printable(problem)}); expected weights written by this project"
    )


def without_upsampling(path: Path, tensors: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """The tensors of a file without the weights of the layers that upsample, which the network here does not have.

    Args:
        num_classes: of the segmentation, background included.

    Raises:
        PipelineError: they do something else than bilinear upsampling.
    """
    kept = dict(tensors)
    for layer, factor in UPSAMPLING.items():
        weight = kept.pop(f"decoder.{layer}.weight", None)
        if weight is None:
            continue
        shape = (num_classes, num_classes, 2 * factor, 2 * factor)
        if weight.shape != shape:
            found = tuple(weight.shape)
            raise PipelineError(f"{path}: tensor decoder.{layer}.weight has shape {found}, expected {shape}")
        if not torch.allclose(weight.float().cpu(), bilinear_kernel(num_classes, factor), rtol=0, atol=1e-6):
            raise PipelineError(
                f"{path}: {layer} does not upsample bilinearly by {factor}, as the network here does with fixed "
                "weights, so its scores would be others; take weights whose upsampling was not trained"
            )
    return kept


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
