from types import SimpleNamespace

import pytest
import torch

from pipeline.base.errors import PipelineError
from pipeline.training import devices
from pipeline.training.devices import M_MMAP_MAX, M_TRIM_THRESHOLD, choose_device, make_deterministic


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16-mixed"),
        ({"avx512_f": True}, "32-true"),
    ],
)
def test_auto_says_what_it_chose(without_gpu, monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    device = choose_device("auto", "auto")
    assert (device.accelerator, device.precision) == ("cpu", precision)
    assert device.reason == f"cpu, {torch.get_num_threads()} threads, {precision} (asked for: auto)"
    assert device.torch_device == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_missing_device_is_an_error_never_a_fall_back(without_gpu, name):
    with pytest.raises(PipelineError, match=rf"runtime\.device: {name} is not available .*set device: cpu") as error:
        choose_device(name, "auto")
    assert torch.__version__ in str(error.value)


def test_half_precision_needs_a_gpu():
    with pytest.raises(PipelineError, match=r"runtime\.precision: 16-mixed needs a GPU"):
        choose_device("cpu", "16-mixed")
    assert choose_device("cpu", "bf16-mixed").precision == "bf16-mixed"


@pytest.fixture
def allocator(monkeypatch):
    """What the C library is told."""
    told = []
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *given: told.append(given)))
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    return told


@pytest.mark.parametrize(
    ("library", "setting", "expected"),
    [
        ("glibc", "", [(M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)]),
        ("glibc", "MALLOC_MMAP_MAX_", []),  # the user's own
        ("musl", "", []),
    ],
)
def test_freed_memory_is_kept_where_glibc_lets_it(allocator, monkeypatch, library, setting, expected):
    monkeypatch.setattr(devices.platform, "libc_ver", lambda: (library, ""))
    if setting:
        monkeypatch.setenv(setting, "65536")
    make_deterministic(choose_device("cpu", "32-true"))
    assert allocator == expected
