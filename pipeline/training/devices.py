"""Which device and precision to compute with: explicit, visible, never a silent fall-back."""

import ctypes
import os
import platform
from dataclasses import dataclass

import torch

from pipeline.base.errors import PipelineError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


@dataclass(frozen=True)
class Device:
    """A choice of device and precision and the reason for it."""

    accelerator: str  # cpu | cuda | mps
    precision: str  # as Lightning Fabric names them
    reason: str

    @property
    def torch_device(self) -> torch.device:
        """The device to put tensors on outside Fabric."""
        return torch.device(self.accelerator)


def choose_device(device: str, precision: str, count: int = 1) -> Device:
    """Resolve `auto` and check what was asked for.

    Args:
        count: devices of this machine that are to work together; on the CPU, processes that share its cores.
        device: auto | cpu | cuda | mps.
        precision: auto | 32-true | bf16-mixed | 16-mixed; auto is bf16-mixed where the hardware multiplies
            bfloat16 (GPUs since 2020, CPUs with AVX-512 BF16 or AMX), else 32-true.

    Raises:
        PipelineError: the device is not there, or not so many; the message says what torch sees.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    accelerator = next(name for name in available if available[name]) if device == "auto" else device
    if not available[accelerator]:
        raise PipelineError(
            f"params.yaml: runtime.device: {accelerator} is not available (torch {torch.__version__} built for CUDA "
            f"{torch.version.cuda or 'none'}, sees {torch.cuda.device_count()} CUDA devices); "
            "install a driver and a torch build that match, or set device: cpu"
        )
    if count > 1 and accelerator != "cpu" and count > (seen := torch.cuda.device_count()):
        raise PipelineError(
            f"params.yaml: runtime.devices: {count} are asked for, and torch sees {seen} on {accelerator}; lower it, "
            "or look at CUDA_VISIBLE_DEVICES"
        )
    if precision == "16-mixed" and accelerator == "cpu":
        raise PipelineError(
            "params.yaml: runtime.precision: 16-mixed needs a GPU; use 32-true or bf16-mixed on the CPU"
        )
    if precision == "auto":
        precision = "bf16-mixed" if _multiplies_bfloat16(accelerator) else "32-true"
    return Device(accelerator, precision, f"{_describe(accelerator, count)}, {precision} (asked for: {device})")


def make_deterministic(device: Device) -> None:
    """Bit-identical results on the CPU for an equal number of threads; on GPUs as far as kernels allow, with a warning
    where they do not. On a CPU, memory that is freed is kept, too.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=device.accelerator != "cpu")
    if device.accelerator == "cpu":
        _keep_freed_memory()
    # Filling fresh memory guards against reading it uninitialised, which nothing here does; it costs 2 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed, instead of giving each large tensor back to the system.

    The system fills memory with zeros, page by page, before it hands it out again: a third of a step at full width. The
    peak grows, by a fifth there, since what lies between tensors cannot be given back. Where the user has set
    MALLOC_MMAP_MAX_ or MALLOC_TRIM_THRESHOLD_, and on systems without glibc, nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc" or {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def _multiplies_bfloat16(accelerator: str) -> bool:
    """In hardware: an emulated bfloat16 is slower than float32."""
    if accelerator == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return accelerator == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _describe(accelerator: str, count: int) -> str:
    several = f"{count} x " if count > 1 else ""
    if accelerator == "cuda":
        index = torch.cuda.current_device()
        return f"cuda{'' if several else f':{index}'} {several}{torch.cuda.get_device_name(index)}"
    return f"{accelerator}, {several}{torch.get_num_threads()} threads" if accelerator == "cpu" else accelerator
