"""Normalisation with fewer passes over memory than the formulas.

Working through smaller pieces, down to 256 KB, that stay in the cache was tried: no faster on one thread (Zen 4), and
every piece ends in a barrier of all threads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..constraints import CHANNELS_LAST, ON_CPU
from ..eager.norm import blocks_of, compute_dtype
from ..norm import _group_norm_mod, _spatial_norm_act
from ..registry import Constraint, implements

_SINGLE = Constraint("x is float32", lambda x, *_: x.dtype is torch.float32)
_AT_MOST_SINGLE = Constraint(
    "x is float32, float16 or bfloat16", lambda x, *_: x.dtype in (torch.float32, torch.float16, torch.bfloat16)
)


@implements(_group_norm_mod, "cpu", ON_CPU, _SINGLE, CHANNELS_LAST)
def group_norm_mod(x: Tensor, rows: Tensor, groups: int, cyclic: bool, activate: bool, eps: float) -> Tensor:
    """Let torch's own norm apply scale and shift as its gain and bias: samples of one row have them in common."""
    N, C, H, W = x.shape
    x = _with_plain_strides(x)
    gains, biases = (rows[:, :C] + 1).to(x.dtype), rows[:, C:].to(x.dtype)
    out = torch.empty_like(x)
    for start, stop, row in _runs(N, rows.shape[0], cyclic):
        part = out[start:stop]
        normed = torch.native_group_norm(x[start:stop], gains[row], biases[row], stop - start, C, H * W, groups, eps)[0]
        torch.ops.aten.silu.out(normed, out=part) if activate else part.copy_(normed)
    return out


def _with_plain_strides(x: Tensor) -> Tensor:
    """View one sample with the strides of many: torch's norm reads the layout off the stride of an axis of length 1."""
    N, C, H, W = x.shape
    return x.permute(0, 2, 3, 1).reshape(-1).view(N, H, W, C).permute(0, 3, 1, 2)


def _runs(samples: int, rows: int, cyclic: bool) -> list[tuple[int, int, int]]:
    """Return ``(start, stop, row)`` of neighbouring samples that share a row."""
    if cyclic:
        return [(n, n + 1, n % rows) for n in range(samples)]
    share = samples // rows
    return [(row * share, (row + 1) * share, row) for row in range(rows)]


@implements(_spatial_norm_act, "cpu", ON_CPU, _AT_MOST_SINGLE, CHANNELS_LAST)
def spatial_norm_act(
    x: Tensor,
    latents: Tensor,
    gain: Tensor,
    gain_offset: Tensor,
    bias: Tensor,
    bias_offset: Tensor,
    weight: Tensor,
    offset: Tensor,
    groups: int,
    activate: bool,
    eps: float,
) -> Tensor:
    """Normalise, then modulate in place from the maps as they are, without enlarging them first.

    In place because a fresh tensor of a 256x256 picture is over 32 MB, which glibc maps anew every time: the faults of
    its pages took as long as the passes (37.8 to 21.3 ms for 128 channels). 16 bit is widened before the first pass and
    rounded after the last: no slower than passes in 16 bit, of which each would round.
    """
    N, C, H, W = x.shape
    h, w = latents.shape[-2:]
    dtype = compute_dtype(x.dtype)
    high, low = (_map_of(latents, *conv, dtype) for conv in ((gain, gain_offset), (bias, bias_offset)))
    wide = _with_plain_strides(x).to(dtype)
    out = torch.native_group_norm(wide, weight.to(dtype), offset.to(dtype), N, C, H * W, groups, eps)[0]
    blocks = blocks_of(out, h, w)  # [N, h, H / h, w, W / w, C]
    torch.addcmul(low, blocks, high, out=blocks)
    return (F.silu(out, inplace=True) if activate else out).to(x.dtype)


def _map_of(latents: Tensor, weight: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the 1x1 convolution of ``latents`` as ``[N or 1, h, 1, w, 1, C]``: of few channels, so a plain product."""
    lines = latents.permute(0, 2, 3, 1).to(dtype)
    return F.linear(lines, weight.to(dtype), offset.to(dtype))[:, :, None, :, None]
