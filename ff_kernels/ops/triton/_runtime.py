"""What depends on where Triton runs: a CUDA device, or the interpreter that tests use."""

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..registry import Constraint, is_interpreting

# The decorator of a kernel decides at import whether it is interpreted, so this is fixed from here on.
_INTERPRETED = is_interpreting()
INTERPRET = tl.constexpr(_INTERPRETED)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

ON_DEVICE = Constraint(
    "tensors are on a CUDA device (or TRITON_INTERPRET is 1 before the first kernel is used)",
    lambda *args: _INTERPRETED or all(a.is_cuda for a in args if isinstance(a, Tensor)),
)
FLOATS = Constraint(
    "floating-point tensors are float16, bfloat16 or float32",
    lambda *args: all(a.dtype in DTYPES for a in args if isinstance(a, Tensor)),
)
NOT_EMPTY = Constraint("x has elements", lambda x, *_: x.numel() > 0)


def missing_device() -> str | None:
    """Return what keeps kernels from running on this machine, or None."""
    return None if torch.cuda.is_available() else "no CUDA device was found"


def architecture(x: Tensor) -> str:
    """Return what kernels for ``x`` are compiled for, such as "sm_89" or "gfx1100"; "" in the interpreter."""
    return "" if _INTERPRETED else _architecture_of(x.device)


@lru_cache(maxsize=64)
def _architecture_of(device: torch.device) -> str:
    if torch.version.hip:
        # The name goes on with features of the card: gfx90a:sramecc+:xnack-.
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
    """Run ``programs`` instances of a kernel on the device of its first argument, a tensor."""
    # Triton launches on the current device, which need not be the one that holds the tensors.
    with torch.cuda.device_of(args[0]):
        kernel[(programs,)](*args, **options)


def same_dtype(*args: Any) -> bool:
    """Return whether all tensors among the arguments have one dtype."""
    return len({a.dtype for a in args if isinstance(a, Tensor)}) == 1


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):  # noqa: ANN001, ANN202 (kernel code has Triton's types)
    """Add the matrix product of two tiles to ``total``, float32."""
    # The interpreter multiplies the bit patterns of bfloat16 (triton issue 11584).
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)
