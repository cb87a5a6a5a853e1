"""Convolutions: with what is added to them, and 3x3 with fewer multiplications."""

import torch
from torch import Tensor

from .eager import conv as formulas
from .registry import Cost, Operation, bytes_of


def _fake_residual_conv(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, padding: list[int]) -> Tensor:
    return torch.empty_like(residual, memory_format=torch.channels_last)


def _cost_of_residual_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, padding: list[int], *, out: Tensor
) -> Cost:
    # On a GPU the vendor's convolution, then a sum over what it wrote.
    flops = 2 * out.numel() * weight[0].numel()
    return Cost(2, flops, bytes_of(x, weight, bias, out) + bytes_of(residual, out, out))


_residual_conv = Operation(
    "residual_conv",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor residual, int[] padding) -> Tensor",
    _fake_residual_conv,
    _cost_of_residual_conv,
    formulas.residual_conv,
)


def residual_conv(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, padding: tuple[int, int]) -> Tensor:
    """Convolution with stride 1 and the sum after it in one pass: ``residual + conv(x)``.

    Args:
        x: ``[N, I, H, W]``.
        weight: ``[O, I, kh, kw]``.
        bias: ``[O]``.
        residual: ``[N, O, H', W']``, the shape of the result.
        padding: zeros around the sides, vertical and horizontal.

    Returns:
        ``[N, O, H', W']``, channels-last.

    Source: release 1.0, the last temporal convolution of a residual block of the interpolation U-Net.
    """
    return _residual_conv(x, weight, bias, residual, list(padding))


def _fake_winograd_conv(x: Tensor, taps: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    N, _, H, W = x.shape
    return x.new_empty(N, H, W, taps.shape[1]).permute(0, 3, 1, 2)


def _cost_of_winograd_conv(
    x: Tensor, taps: Tensor, bias: Tensor | None, residual: Tensor | None, *, out: Tensor
) -> Cost:
    return Cost(1, 2 * out.numel() * taps[:, 0].numel() // formulas.ROWS, bytes_of(x, taps, bias, residual, out))


_winograd_conv = Operation(
    "winograd_conv",
    "(Tensor x, Tensor taps, Tensor? bias, Tensor? residual) -> Tensor",
    _fake_winograd_conv,
    _cost_of_winograd_conv,
    formulas.winograd_conv,
)


def winograd_taps(weight: Tensor) -> Tensor:
    """Return what ``winograd_conv`` needs of a 3x3 kernel, worked out in float64: ``[O, I, 3, 3]`` to ``[6, O, 3, I]``.

    Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", F(4, 3), in one direction only.
    """
    return formulas.winograd_taps(weight)


def winograd_conv(x: Tensor, taps: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None) -> Tensor:
    """3x3 convolution with padding 1 in half the multiplications, plus ``residual``.

    Four rows of the result come from six combinations of the rows they see, each through a 1x3 convolution. Only one
    direction is combined: in float32 the error is two to four times that of the plain convolution. Combining both would
    halve the multiplications again at three times this error and with more passes over memory.

    Args:
        x: ``[N, I, H, W]``; H that is a multiple of 4 wastes nothing.
        taps: ``[6, O, 3, I]`` from ``winograd_taps``.
        bias: ``[O]``.
        residual: ``[N, O, H, W]`` added to the result.

    Returns:
        ``[N, O, H, W]``, channels-last.

    Source: as ``winograd_taps``.
    """
    return _winograd_conv(x, taps, bias, residual)


def _fake_nearest_conv(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    N, _, H, W = x.shape
    return x.new_empty(N, 2 * H, 2 * W, kernels.shape[1]).permute(0, 3, 1, 2)


def _cost_of_nearest_conv(x: Tensor, kernels: Tensor, bias: Tensor | None, *, out: Tensor) -> Cost:
    return Cost(1, 2 * x[:, 0].numel() * kernels.numel(), bytes_of(x, kernels, bias, out))


_nearest_conv = Operation(
    "nearest_conv",
    "(Tensor x, Tensor kernels, Tensor? bias) -> Tensor",
    _fake_nearest_conv,
    _cost_of_nearest_conv,
    formulas.nearest_conv,
)


def nearest_kernels(weight: Tensor) -> Tensor:
    """Return what ``nearest_conv`` needs of a 3x3 kernel, from float64: ``[O, I, 3, 3]`` to ``[9, O, I]``."""
    return formulas.nearest_kernels(weight)


def nearest_conv(x: Tensor, kernels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Nearest doubling and a 3x3 convolution with padding 1 in nine products per position of ``x`` in place of 36.

    Along one side, with taps a, b, c and differences ``d[i] = x[i] - x[i - 1]``, the doubled position 2i sees
    ``a x[i - 1] + (b + c) x[i] = (a + b + c) x[i] - a d[i]`` and 2i + 1 sees ``(a + b + c) x[i] + c d[i + 1]``: three
    products for two values. Four 2x2 kernels, one per output of a position, need sixteen.

    Args:
        x: ``[N, I, H, W]``.
        kernels: ``[9, O, I]`` from ``nearest_kernels``.
        bias: ``[O]``.

    Returns:
        ``[N, O, 2H, 2W]``, channels-last.

    Source: release 1.0, class Upsample of MoVQ; golden ``v10_movq``.
    """
    return _nearest_conv(x, kernels, bias)
