"""Files of other projects: their tensors are read, and nothing in them is executed."""

import io
import os
import pickle
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_archives import pytorch_fcn_state
from torch import Tensor, nn

from pipeline.model.foreign_files import read_checkpoint


def trained() -> tuple[dict[str, object], dict[str, Tensor]]:
    """A checkpoint with the keys and types of pytorch-fcn's trainer, after a step, and the weights in it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.99)
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "iteration": np.int64(4000),
        "arch": type(model).__name__,
        "optim_state_dict": optimizer.state_dict(),
        "model_state_dict": model.state_dict(),
        "best_mean_iu": np.nanmean(np.array([0.5, np.nan, 0.7])),
        "history": np.array([[0.5, 0.7]], dtype=np.float32),
        "improved": np.bool_(True),
    }
    return content, model.state_dict()


def of_numpy_1(content: bytes) -> bytes:
    """NumPy 2 moved what it names in pickles."""
    return content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


class OfPython2(pickle._Pickler):
    """Python 2 wrote bytes as short text in no encoding."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, content: bytes) -> None:
        self.write(pickle.SHORT_BINSTRING + struct.pack("<B", len(content)) + content)

    dispatch[bytes] = save_bytes


def dump_of_python_2(content: object, file: io.BytesIO, protocol: int) -> None:
    OfPython2(file, protocol).dump(content)


PYTHON_2 = SimpleNamespace(Pickler=OfPython2, dump=dump_of_python_2, __name__="pickle")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "model_state_dict": s}])
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_and_checkpoints_of_both_file_formats_are_read(checkpoint, wrap, zipped):
    state = pytorch_fcn_state()
    tensors = read_checkpoint(checkpoint(wrap(state), _use_new_zipfile_serialization=zipped))
    assert tensors.keys() == state.keys()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("numpy_1", [True, False])
def test_checkpoint_of_pytorch_fcns_trainer_is_read(checkpoint, zipped, numpy_1):
    content, state = trained()
    before = set(torch.serialization.get_safe_globals())
    path = checkpoint(content, _use_new_zipfile_serialization=zipped)
    if numpy_1 and not zipped:  # a zip has a checksum of it
        path.write_bytes(of_numpy_1(path.read_bytes()))
    tensors = read_checkpoint(path)
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())
    assert set(torch.serialization.get_safe_globals()) == before


def test_checkpoint_that_python_2_wrote_is_read(checkpoint):
    content, state = trained()
    path = checkpoint(content, pickle_module=PYTHON_2, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path).keys() == state.keys()


def test_safetensors_are_read_whatever_they_are_called(tmp_path, refused):
    state = pytorch_fcn_state()
    path = tmp_path / "weights.pth"
    save_file(state, path)
    tensors = read_checkpoint(path)
    assert tensors.keys() == state.keys()
    assert torch.equal(tensors["conv1_1.weight"], state["conv1_1.weight"])
    path.write_bytes(path.read_bytes()[:5000])
    assert f"{path}: not a readable safetensors file (" in refused(read_checkpoint, path)


class Calls:
    """Unpickled, it would call a function."""

    def __init__(self, function: Callable, *arguments: object, state: object = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.call


def harmful(made: str) -> dict[str, object]:
    """What would make a file, by several roads."""
    touch = Calls(os.system, f"touch {made}")
    scalar = np.float64(0.5).__reduce__()[0]
    return {
        "alone": touch,
        "in a scalar of NumPy": Calls(scalar, np.dtype("float64"), touch),
        "as the type of a scalar": Calls(scalar, touch, b"x"),
        "as the state of a type": Calls(np.dtype, "f8", state=(touch,)),
        "as a function of NumPy": Calls(np.save, made, 1),
        "as evaluated text": Calls(eval, f"open({made!r}, 'w')"),
        "as an object": Calls(SimpleNamespace),
    }


@pytest.mark.parametrize("kind", list(harmful("")))
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_executed(checkpoint, tmp_path, refused, kind, zipped):
    content = {"model_state_dict": {"a": torch.zeros(1)}, "best_mean_iu": harmful(str(tmp_path / "made"))[kind]}
    path = checkpoint(content, _use_new_zipfile_serialization=zipped)
    message = refused(read_checkpoint, path)
    assert message.startswith(f"{path}: not read, since it holds more than tensors and numbers (")
    assert "weights_only" not in message
    assert message.isprintable()
    assert not list(tmp_path.glob("made*"))


def test_what_stands_for_numpy_runs_nothing_of_numpy(checkpoint, monkeypatch):
    """A type of a billion bytes would be allocated, and an array of objects filled."""
    scalar = np.float64(0.5).__reduce__()[0]
    content = {"state_dict": {"a": torch.ones(1)}, "x": Calls(scalar, Calls(np.dtype, "V9000000000"))}
    assert torch.equal(read_checkpoint(checkpoint(content))["a"], torch.ones(1))


def test_name_with_escape_codes_is_shown_without_them(tmp_path, refused):
    path = tmp_path / "w.pth"
    torch.save({"a": Calls(os.system, "x")}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"cposix\nsystem\n", b"cposix\nsys\x1b[31mtem\n"))
    message = refused(read_checkpoint, path)
    assert message.isprintable()
    assert "posix.system" in message


def test_program_of_torchscript_is_refused(tmp_path, refused):
    import warnings

    path = tmp_path / "w.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.trace(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)).save(path)
    message = refused(read_checkpoint, path)
    assert "not read, since it holds a program (TorchScript); export its state dict" in message
    assert "weights_only" not in message


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 cut", b"\x80\x02."])
def test_damaged_checkpoint_is_named(tmp_path, refused, content):
    (tmp_path / "w.pth").write_bytes(content)
    message = refused(read_checkpoint, tmp_path / "w.pth")
    assert message.startswith(f"{tmp_path / 'w.pth'}: not a readable checkpoint")
    assert message.endswith("; fetch it again")
    assert message.isprintable()
    assert "weights_only" not in message


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\n <HTML>", b"\xef\xbb\xbf<html>"])
def test_web_page_saved_as_weights_is_called_that(tmp_path, refused, page):
    (tmp_path / "w.pth").write_bytes(page)
    assert f"{tmp_path / 'w.pth'}: an HTML page, not weights" in refused(read_checkpoint, tmp_path / "w.pth")


def test_missing_checkpoint_and_one_without_tensors_are_named(checkpoint, tmp_path, refused):
    assert "run `dvc repro download`" in refused(read_checkpoint, tmp_path / "none.pth")
    assert "holds no state dict" in refused(read_checkpoint, checkpoint({"epoch": 3}))
    assert "holds no state dict" in refused(read_checkpoint, checkpoint({1: torch.ones(1), "a": torch.ones(1)}))
    assert "holds no state dict" in refused(read_checkpoint, checkpoint({"state_dict": {"a": np.float64(1.0)}}))
