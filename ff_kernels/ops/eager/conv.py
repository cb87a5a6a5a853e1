"""Convolutions: with what is added to them, and 3x3 with fewer multiplications."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra import exact, rounded

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
    weights = exact(weight)
    kernel = torch.tensor(_KERNEL, dtype=torch.float64, device=weights.device)
    return rounded(torch.einsum("pk,oikl->poli", kernel, weights).contiguous(), weight)


def winograd_conv(x: Tensor, taps: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Formula of ``ops.winograd_conv``."""
    height = x.shape[2]
    spare = -height % ROWS
    windows = F.pad(x, (0, 0, 1, 1 + spare)).unfold(2, WINDOW, ROWS)  # [N, I, tiles, W, 6]
    windows = torch.einsum("pk,nctwk->pnctw", x.new_tensor(_INPUT), windows)
    kernels = taps.transpose(2, 3)[:, :, :, None]  # [6, O, I, 1, 3]
    products = torch.stack([F.conv2d(m, k, padding=(0, 1)) for m, k in zip(windows, kernels, strict=True)])
    out = torch.einsum("rp,pnctw->nctrw", x.new_tensor(_OUTPUT), products).flatten(2, 3)[:, :, :height]
    out = out if bias is None else out + bias[:, None, None]
    return (out if residual is None else residual + out).contiguous(memory_format=torch.channels_last)


# Of the nine kernels of ``nearest_conv``: for the map itself, and for its differences down, across and both.
STILL, DOWN, ACROSS, BOTH = slice(0, 1), slice(1, 3), slice(3, 5), slice(5, 9)


def nearest_kernels(weight: Tensor) -> Tensor:
    """Formula of ``ops.nearest_kernels``."""
    taps = exact(weight).permute(2, 3, 0, 1)  # [3, 3, O, I]
    # What a side is seen through: everything, or the first tap (of the even half) or the last (of the odd half).
    down = torch.stack([taps.sum(0), -taps[0], taps[2]])
    sides = torch.stack([down.sum(1), -down[:, 0], down[:, 2]], dim=1)  # [down, across, O, I]
    parts = (sides[:1, 0], sides[1:, 0], sides[0, 1:], sides[1:, 1:].flatten(0, 1))
    return rounded(torch.cat(parts), weight)


def nearest_conv(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """Formula of ``ops.nearest_conv``."""
    H, W = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    across, down = padded[..., 1:-1, :].diff(dim=3), padded[..., 1:-1].diff(dim=2)
    both = padded.diff(dim=3).diff(dim=2)

    def through(maps: Tensor, part: slice) -> Tensor:
        return torch.einsum("nihw,koi->knohw", maps, kernels[part])

    still, down, across = through(x, STILL), through(down, DOWN), through(across, ACROSS)
    both = through(both, BOTH).unflatten(0, (2, 2))
    rows = []
    for j in range(2):
        halves = (
            still[0] + down[j, :, :, j : j + H] + across[i, ..., i : i + W] + both[j, i, :, :, j : j + H, i : i + W]
            for i in range(2)
        )
        rows.append(torch.stack(list(halves), dim=-1).flatten(-2))  # [N, O, H, 2W]
    out = torch.stack(rows, dim=3).flatten(2, 3)
    out = out if bias is None else out + bias[:, None, None]
    return out.contiguous(memory_format=torch.channels_last)
