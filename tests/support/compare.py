"""The measure of a kernel: its error against float64, beside the error of the formula in the kernel's own dtype."""

import os

import torch
from torch import Tensor

IS_INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


def ulp(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of neighbouring numbers of ``dtype`` at each value."""
    info = torch.finfo(dtype)
    return 2.0 ** exact.abs().clamp(min=info.tiny).log2().floor() * info.eps


def errors(got: Tensor, formula: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest error of a kernel and of the formula in the same dtype."""
    return tuple((t.double() - exact).abs().max().item() for t in (got, formula))


def assert_as_good_as_formula(got: Tensor, formula: Tensor, exact: Tensor) -> None:
    """Error at most twice that of the formula in the same dtype, plus one unit in the last place.

    The result must also have the dtype, shape and strides of the formula.
    """
    assert got.dtype is formula.dtype
    assert got.shape == formula.shape
    # The stride of an axis of length 1 means nothing.
    assert [(n, a) for n, a in zip(got.shape, got.stride(), strict=True) if n > 1] == [
        (n, a) for n, a in zip(got.shape, formula.stride(), strict=True) if n > 1
    ]
    assert exact.dtype is torch.float64
    # Triton's interpreter cuts bfloat16 results off instead of rounding them: one unit more.
    units = 2 if got.dtype is torch.bfloat16 and IS_INTERPRETING else 1
    bound = 2 * errors(got, formula, exact)[1] + units * ulp(exact, got.dtype)
    excess = (got.double() - exact).abs() - bound
    assert (excess <= 0).all(), f"largest errors of kernel and formula: {errors(got, formula, exact)}"
