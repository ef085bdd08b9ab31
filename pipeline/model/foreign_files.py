"""Tensors from files of other projects: state dicts and checkpoints of torch, and safetensors. Nothing is executed."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.base.errors import PipelineError, printable
from pipeline.base.files import content_other_than_a_file

EXPORT = "export its state dict with torch.save(model.state_dict(), PATH)"
# What a checkpoint names to rebuild NumPy's scalars and arrays, such as a best score; NumPy 1 and 2.
NUMPY_NAMES = (
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)


class _NotRead:
    """Stands where a checkpoint has a value of NumPy: no weight is one, so what the file says of it is not used."""

    def __new__(cls, *_: object) -> "_NotRead":
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name: a state dict, a training checkpoint that holds one, or safetensors.

    torch reads what is pickled with weights_only. Values of NumPy, as pytorch-fcn's trainer writes beside
    `model_state_dict`, are passed over.

    Raises:
        PipelineError: the file is missing, damaged or a web page, holds other objects, or no state dict.
    """
    try:
        if (other := content_other_than_a_file(path)) is not None:
            raise PipelineError(f"{path}: {other}, not weights: save what the page leads to")
        content: Any = load_file(path) if _is_safetensors(path) else _unpickled(path)
    except FileNotFoundError:
        raise PipelineError(f"{path}: weights missing; run `dvc repro download`, which fetches them") from None
    except SafetensorError as error:
        raise PipelineError(
            f"{path}: not a readable safetensors file ({printable(str(error))}); fetch it again"
        ) from None
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise PipelineError(f"{path}: holds no state dict (names and tensors); {EXPORT}")
    return dict(content)


def _is_safetensors(path: Path) -> bool:
    """Its header, in JSON, comes after eight bytes of its length; at that place a pickle or a zip has no brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _unpickled(path: Path) -> Any:
    """What torch.save wrote. Under Python 2 it wrote bytes as text, which latin1 alone reads whatever they are."""
    allowed = [(_NotRead, name) for name in NUMPY_NAMES]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.simplefilter("ignore")  # of TorchScript, which is refused, and of `encoding`, which is used
            return torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")
    except FileNotFoundError:
        raise
    except Exception as error:  # torch has one for every kind of damage
        raise PipelineError(f"{path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What torch says, without its advice to read the file all the same, which would execute what is in it."""
    text = str(error)
    if "TorchScript archive" in text:
        return f"not read, since it holds a program (TorchScript); {EXPORT}"
    if named := re.search(r"GLOBAL (\S+)", text):
        return f"not read, since it holds more than tensors and numbers ({printable(named[1])}); {EXPORT}"
    if re.search(r"call reduce|Can only (create|build)", text):
        return f"not read, since it holds more than tensors and numbers; {EXPORT}"
    said = "" if "weights_only" in text or not text.strip() else f" ({printable(text.splitlines()[0])})"
    return f"not a readable checkpoint{said}; fetch it again"
