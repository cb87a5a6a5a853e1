"""Which device runs a network, what it can compute in, and what it has: the one place that asks torch about devices."""

import platform
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from ..errors import InputError

# The order in which a device is looked for.
ORDER = ("cuda", "mps", "xpu", "npu", "cpu")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# From this generation on (Ampere) a CUDA device multiplies bfloat16; before, torch only imitates it.
_BFLOAT16_CAPABILITY = (8, 0)
# What torch raises where any device is full; newer ones have it under a name without "cuda" too.
OutOfMemoryError = torch.cuda.OutOfMemoryError


def _module(device_type: str) -> ModuleType | None:
    """Return the module of torch for a type of device, None where this torch has none."""
    return getattr(torch, device_type, None)


def is_present(device_type: str) -> bool:
    """Return whether a device of this type can be used on this machine."""
    if device_type == "cpu":
        return True
    # Not every torch lets the module for Apple's devices be asked this.
    module = torch.backends.mps if device_type == "mps" else _module(device_type)
    return module is not None and module.is_available()


def first_present() -> str:
    """Return the first type of ``ORDER`` that this machine has."""
    return next(filter(is_present, ORDER))


def choose_device(name: str | None = None) -> torch.device:
    """Return the named device, or the first of ``ORDER`` that this machine has.

    Args:
        name: a device of torch, such as "cuda:1" or "cpu".

    Raises:
        InputError: if torch cannot use the named device; the message names those it can.
    """
    if name is None:
        return torch.device(first_present())
    try:
        device = torch.device(name)
        # A device without memory, such as meta, holds tensors and computes nothing.
        torch.empty(1, device=device).fill_(1).item()
    # What torch raises for a device that is missing depends on the device.
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        present = ", ".join(filter(is_present, ORDER))
        raise InputError(f"expected a device that torch can use, got '{name}': this machine has {present}") from error
    return device


def computes_in(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a device computes in a floating-point dtype by itself, not by an imitation of torch's.

    A CUDA device on a machine without one is taken for one of today: plans are made for it.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        return True
    if device.type == "cuda" and dtype is torch.bfloat16 and not torch.version.hip:
        return torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY
    try:
        a = torch.ones(2, 2, device=device).to(dtype)
        return bool((a @ a).isfinite().all())
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def quick_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Return the 16-bit dtypes in which a device multiplies faster than in float32, the more exact one first.

    Of processors only those with matrix units do: with AVX-512 alone convolutions in bfloat16 took 1.8 to 5 times as
    long as in float32, in float16 13 times; with AMX a seventh.
    """
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return (torch.bfloat16,) if capabilities.get("amx_bf16") else ()
    return tuple(half for half in (torch.float16, torch.bfloat16) if computes_in(device, half))


def held_itemsize(device: torch.device, dtype: torch.dtype) -> int:
    """Return the bytes that a number of an intermediate result takes.

    Kernels keep 16 bit to themselves; the formulas that serve other devices widen them to float32 on the way.
    """
    return dtype.itemsize if device.type == "cuda" else max(dtype.itemsize, torch.float32.itemsize)


def dtypes_of(device: torch.device) -> tuple[str, ...]:
    """Return the names of ``DTYPES`` that a device computes in."""
    return tuple(name for name, dtype in DTYPES.items() if computes_in(device, dtype))


def choose_dtype(device: torch.device, name: str | None = None) -> torch.dtype:
    """Return the named dtype, or the default: float16 on a card that computes in it, else float32.

    Args:
        device: where networks run.
        name: one of ``DTYPES``.

    Raises:
        InputError: if the device does not compute in the named one.
    """
    if name is None:
        return torch.float16 if device.type != "cpu" and computes_in(device, torch.float16) else torch.float32
    if name not in DTYPES or not computes_in(device, DTYPES[name]):
        raise InputError(
            f"expected a dtype in which {name_of(device)} computes, got {name}: choose {' or '.join(dtypes_of(device))}"
        )
    return DTYPES[name]


@dataclass(frozen=True)
class Planned:
    """A device to plan for.

    Attributes:
        device: it.
        dtype: in which it computes by default.
        is_here: whether this machine has it.
    """

    device: torch.device
    dtype: torch.dtype
    is_here: bool


def planned_device() -> Planned:
    """Return the accelerator of this machine, or else a CUDA device of today that it might have."""
    name = first_present()
    device = torch.device("cuda" if name == "cpu" else name)
    return Planned(device, choose_dtype(device), name != "cpu")


def wide_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return a dtype with the range of float32 for networks that overflow in float16: bfloat16 where that is computed.

    Args:
        device: where the network runs.
        dtype: dtype of the other networks; any but float16 stays.
    """
    if dtype is not torch.float16:
        return dtype
    return torch.bfloat16 if computes_in(device, torch.bfloat16) else torch.float32


def name_of(device: torch.device) -> str:
    """Return the name of a card, or of the processor and how many threads torch uses on it."""
    if device.type != "cpu":
        ask = getattr(_module(device.type), "get_device_name", None)
        return f"Apple {platform.machine()}" if device.type == "mps" else str(ask(device)) if ask else device.type
    name, listing = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if listing.exists():
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def free_bytes(device: torch.device) -> int | None:
    """Return what torch can still allocate on a device, its own idle cache included; None where nobody knows."""
    module = _module(device.type)
    if device.type == "mps":
        return module.recommended_max_memory() - module.current_allocated_memory()
    if device.type == "cpu" or not hasattr(module, "mem_get_info"):
        return None
    idle = module.memory_reserved(device) - module.memory_allocated(device)
    return module.mem_get_info(device)[0] + idle


def allocated_bytes(device: torch.device) -> int | None:
    """Return what torch has allocated on a device now; None where nobody counts."""
    module = _module(device.type)
    if device.type == "mps":
        return module.current_allocated_memory()
    return None if device.type == "cpu" or not hasattr(module, "memory_allocated") else module.memory_allocated(device)


def peak_bytes(device: torch.device) -> int | None:
    """Return the most that torch had allocated on a device since ``restart_peak``; None where nobody counts."""
    module = _module(device.type)
    counts = device.type != "cpu" and hasattr(module, "max_memory_allocated")
    return module.max_memory_allocated(device) if counts else None


def restart_peak(device: torch.device) -> None:
    """Count ``peak_bytes`` from now on."""
    reset = getattr(_module(device.type), "reset_peak_memory_stats", None)
    if device.type != "cpu" and reset is not None:
        reset(device)


def empty_cache(device: torch.device) -> None:
    """Give what torch holds back for later to the device, so that other networks find room in one piece."""
    empty = getattr(_module(device.type), "empty_cache", None)
    if device.type != "cpu" and empty is not None:
        empty()


def count_devices(device_type: str) -> int:
    """Return how many devices of a type this machine has; a processor is one."""
    if not is_present(device_type):
        return 0
    return getattr(_module(device_type), "device_count", lambda: 1)() if device_type != "cpu" else 1


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all work given to it."""
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu" and hasattr(_module(device.type), "synchronize"):
        _module(device.type).synchronize(device)


def describe_devices() -> list[tuple[str, str]]:
    """Return ``(type, state)`` for every type of ``ORDER``: its name and dtypes, or that it was not found."""
    rows = []
    for device_type in ORDER:
        device = torch.device(device_type) if is_present(device_type) else None
        state = "not found" if device is None else f"{name_of(device)}; computes in {', '.join(dtypes_of(device))}"
        rows.append((device_type, state))
    return rows
