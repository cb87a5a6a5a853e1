"""Convolutions of oneDNN, which adds a residual in the same pass; 3x3 ones with half the multiplications."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..constraints import ON_CPU
from ..conv import _nearest_conv, _residual_conv, _winograd_conv
from ..eager.conv import ACROSS, BOTH, DOWN, ROWS, STILL, WINDOW
from ..registry import Constraint, implements
from .linear import HAS_FUSED_LINEAR

_SINGLE = Constraint("x is float32", lambda x, *_: x.dtype is torch.float32)
# Bytes of x per block: 2 to 4 MB were best on one core of an EPYC with 1 MB of L2 (256 KB: slower than plain).
_BLOCK_BYTES = 4 << 20


def _has_fused_conv() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


@implements(
    _residual_conv,
    "cpu",
    ON_CPU,
    _SINGLE,
    Constraint("this torch has the fused convolutions of oneDNN", lambda *_: _has_fused_conv()),
)
def residual_conv(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, padding: list[int]) -> Tensor:
    """Add while the result is written: 15.4 ms where a sum of its own took 28.1 (128 channels, 28 frames of 32x32)."""
    x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
    fused = torch.ops.mkldnn._convolution_pointwise.binary
    out = fused(x, residual, weight, bias, padding, [1, 1], [1, 1], 1, "add", None, None, [], None)
    return out.contiguous(memory_format=torch.channels_last)


@implements(_winograd_conv, "cpu", ON_CPU, _SINGLE)
def winograd_conv(x: Tensor, taps: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Work through blocks of rows that stay in the cache between the passes."""
    N, _, H, W = x.shape
    tiles = -(-H // ROWS)
    lines = x.permute(0, 2, 3, 1).contiguous()  # [N, H, W, I]
    out = lines.new_empty(N, tiles * ROWS, W, taps.shape[1])
    at_once = max(1, _BLOCK_BYTES // (ROWS * bytes_per_row(lines)))
    samples, rows = max(1, at_once // tiles), ROWS * min(at_once, tiles)
    for n in range(0, N, samples):
        for y in range(0, tiles * ROWS, rows):
            stop = min(y + rows, tiles * ROWS)
            block = out[n : n + samples, y:stop]
            _combine(_with_halo(lines[n : n + samples], y, stop), taps, bias, block.unflatten(1, (-1, ROWS)))
            if residual is not None:
                block[:, : H - y].add_(residual[n : n + samples, :, y:stop].permute(0, 2, 3, 1))
    return out[:, :H].reshape(-1).view(N, H, W, -1).permute(0, 3, 1, 2)


def bytes_per_row(lines: Tensor) -> int:
    """Return the bytes of one row of maps ``[N, H, W, C]``."""
    return lines[0, 0].numel() * lines.element_size()


def _along_width(rows: Tensor, taps: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve ``[N, H, W, I]`` with ``[O, 3, I]`` along W, zeros beyond the sides."""
    N, H, W, I = rows.shape  # noqa: E741 (input channels, as everywhere)
    if len(taps) <= N * H * W or not HAS_FUSED_LINEAR.holds():
        kernel = taps.transpose(1, 2)[:, :, None]  # [O, I, 1, 3], channels-last as it lies
        return F.conv2d(rows.permute(0, 3, 1, 2), kernel, bias, padding=(0, 1)).permute(0, 2, 3, 1)
    # Few positions, many weights: oneDNN's convolution repacks the weights at every call, its product reads them as
    # they are (1.43 to 0.90 ms for 512 channels and 120 positions).
    padded = F.pad(rows, (0, 0, 1, 1))
    seen = padded.as_strided((N, H, W, 3 * I), (*padded.stride()[:3], 1), padded.storage_offset())
    return torch.ops.mkldnn._linear_pointwise(seen, taps.flatten(1), bias, "none", [], "")


def _with_halo(lines: Tensor, start: int, stop: int) -> Tensor:
    """Return rows ``start - 1 .. stop`` of ``[N, H, W, C]``; zeros where there are none."""
    height = lines.shape[1]
    part = lines[:, max(start - 1, 0) : stop + 1]
    above, below = int(start == 0), max(0, stop + 1 - height)
    return F.pad(part, (0, 0, 0, 0, above, below)) if above or below else part


def _combine(lines: Tensor, taps: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Fill ``out`` ``[N, tiles, 4, W, O]`` from ``lines`` ``[N, 4 * tiles + 2, W, I]`` in as few passes as possible.

    The same sums as the two matrices of the formula; pairs of combinations that differ in one sign share their halves.
    """
    span = lines.shape[1] - WINDOW + ROWS
    d0, d1, d2, d3, d4, d5 = (lines[:, k : k + span : ROWS] for k in range(WINDOW))

    even, odd = torch.sub(d4, d2, alpha=4), torch.sub(d3, d1, alpha=4)
    # Each of the four rows takes this product once, so the bias may ride on it.
    plus = _along_width(even + odd, taps[1], bias)
    minus = _along_width(even.sub_(odd), taps[2])
    near, near_odd = plus + minus, plus.sub_(minus)
    torch.sub(d4, d2, out=even), torch.sub(d3, d1, out=odd)
    plus = _along_width(torch.add(even, odd, alpha=2), taps[3])
    minus = _along_width(even.sub_(odd, alpha=2), taps[4])
    far, far_odd = plus + minus, plus.sub_(minus)
    first = _along_width(torch.sub(d4, d2, alpha=5, out=even).add_(d0, alpha=4), taps[0])
    torch.add(first.add_(near), far, out=out[:, :, 0])
    torch.add(near_odd, far_odd, alpha=2, out=out[:, :, 1])
    torch.add(near, far, alpha=4, out=out[:, :, 2])
    last = _along_width(torch.sub(d5, d3, alpha=5, out=even).add_(d1, alpha=4), taps[5])
    torch.add(last.add_(near_odd), far_odd, alpha=8, out=out[:, :, 3])


@implements(_nearest_conv, "cpu", ON_CPU, _SINGLE, HAS_FUSED_LINEAR)
def nearest_conv(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """Work through blocks of rows; 1.4 times as fast as the transposed 4x4 convolution of oneDNN."""
    N, _, H, W = x.shape
    lines = x.permute(0, 2, 3, 1).contiguous()  # [N, H, W, I]
    out = lines.new_empty(N, H, 2, W, 2, kernels.shape[1])
    rows = max(1, _BLOCK_BYTES // bytes_per_row(lines))
    weights = [kernels[part].flatten(0, 1) for part in (STILL, DOWN, ACROSS, BOTH)]
    for n in range(N):
        for y in range(0, H, rows):
            stop = min(y + rows, H)
            _double(F.pad(_with_halo(lines[n : n + 1], y, stop), (0, 0, 1, 1)), weights, bias, out[n : n + 1, y:stop])
    return out.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _double(lines: Tensor, weights: list[Tensor], bias: Tensor | None, out: Tensor) -> None:
    """Fill ``out`` ``[1, H, 2, W, 2, O]`` from ``lines`` ``[1, H + 2, W + 2, I]``."""
    _, H, _, W, _, _ = out.shape
    inner, across = lines[:, 1:-1, 1:-1], lines[:, :, 1:] - lines[:, :, :-1]
    maps = (inner, lines[:, 1:, 1:-1] - lines[:, :-1, 1:-1], across[:, 1:-1], across[:, 1:] - across[:, :-1])
    multiply = torch.ops.mkldnn._linear_pointwise
    products = (
        multiply(m, w, b, "none", [], "") for m, w, b in zip(maps, weights, (bias, None, None, None), strict=True)
    )
    still, down, across, both = (p.unflatten(-1, (-1, out.shape[-1])) for p in products)  # [1, H, W, kernels, O]
    for j in range(2):
        half = still[:, :, :, 0] + down[:, j : j + H, :, j]
        for i in range(2):
            rest = across[:, :, i : i + W, i] + both[:, j : j + H, i : i + W, 2 * j + i]
            torch.add(half, rest, out=out[:, :, j, :, i])
