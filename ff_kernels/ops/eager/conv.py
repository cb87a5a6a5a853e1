"""Convolutions: with what is added to them, and 3x3 with fewer multiplications."""

import torch
import torch.nn.functional as F
from torch import Tensor

# F(4, 3) of Winograd and Cook-Toom for the points 0, 1, -1, 2, -2 and infinity: four rows of output from six of input.
WINDOW, ROWS = 6, 4
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def residual_conv(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, padding: list[int]) -> Tensor:
    """Formula of ``ops.residual_conv``."""
    return (residual + F.conv2d(x, weight, bias, padding=padding)).contiguous(memory_format=torch.channels_last)


def winograd_taps(weight: Tensor) -> Tensor:
    """Formula of ``ops.winograd_taps``."""
    kernel = torch.tensor(_KERNEL, dtype=torch.float64, device=weight.device)
    return torch.einsum("pk,oikl->poil", kernel, weight.double()).to(weight.dtype)


def winograd_conv(x: Tensor, taps: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Formula of ``ops.winograd_conv``."""
    height = x.shape[2]
    spare = -height % ROWS
    windows = F.pad(x, (0, 0, 1, 1 + spare)).unfold(2, WINDOW, ROWS)  # [N, I, tiles, W, 6]
    windows = torch.einsum("pk,nctwk->pnctw", x.new_tensor(_INPUT), windows)
    products = torch.stack([F.conv2d(m, t[:, :, None], padding=(0, 1)) for m, t in zip(windows, taps, strict=True)])
    out = torch.einsum("rp,pnctw->nctrw", x.new_tensor(_OUTPUT), products).flatten(2, 3)[:, :, :height]
    out = out if bias is None else out + bias[:, None, None]
    return (out if residual is None else residual + out).contiguous(memory_format=torch.channels_last)
