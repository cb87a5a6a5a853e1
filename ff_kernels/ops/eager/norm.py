"""Group normalisation with a modulation that comes from a time vector (U-Nets) or from a latent map (MoVQ)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: 16-bit numbers are computed in float32 and rounded once, at the end."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def is_trained_on_cpu(x: Tensor) -> bool:
    """Whether a gradient of ``x`` is wanted on a processor, whose backward torch has faster in another form."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and x.requires_grad


def spread_rows(rows: Tensor, samples: int, cyclic: bool) -> Tensor:
    """Return one row per sample, ``[N, K]`` of ``[R, K]``: neighbours share a row, or rows repeat in turn."""
    share = samples // rows.shape[0]
    return rows.repeat(share, 1) if cyclic else rows.repeat_interleave(share, 0)


def group_norm_mod(x: Tensor, rows: Tensor, groups: int, cyclic: bool, activate: bool, eps: float) -> Tensor:
    """Formula of ``ops.group_norm_mod``."""
    dtype = compute_dtype(x.dtype)
    wide, rows = x.to(dtype), rows.to(dtype)
    if is_trained_on_cpu(x) and not cyclic and len(rows) < len(x):
        return _finish(_norm_by_runs(wide, rows, groups, eps), x, activate)
    scale, shift = spread_rows(rows, x.shape[0], cyclic)[:, :, None, None].chunk(2, dim=1)
    out = torch.addcmul(shift, F.group_norm(wide, groups, eps=eps), scale + 1)
    return _finish(out, x, activate)


def _norm_by_runs(x: Tensor, rows: Tensor, groups: int, eps: float) -> Tensor:
    """Let the norm of neighbours that share a row apply it: its backward gives their gradients in the same passes."""
    scales, shifts = rows.chunk(2, dim=1)
    parts = zip(x.chunk(len(rows)), (scales + 1).unbind(), shifts.unbind(), strict=True)
    return torch.cat([F.group_norm(part, groups, gain, bias, eps) for part, gain, bias in parts])


def _affine_norm(x: Tensor, groups: int, weight: Tensor, offset: Tensor, eps: float) -> Tensor:
    if torch.is_grad_enabled() and not x.requires_grad:
        # On processors torch 2.13 crashes in the backward of channels-last maps that want no gradient themselves.
        return torch.addcmul(offset[:, None, None], F.group_norm(x, groups, eps=eps), weight[:, None, None])
    return F.group_norm(x, groups, weight, offset, eps)


def _finish(out: Tensor, x: Tensor, activate: bool) -> Tensor:
    out = (F.silu(out) if activate else out).to(x.dtype)
    # Torch's norm on CUDA gives back plain contiguous memory whatever it was given (ops/EXACTNESS.md, "Fused norm").
    return out.contiguous(memory_format=torch.channels_last)


def blocks_of(x: Tensor, h: int, w: int) -> Tensor:
    """View ``[N, C, H, W]`` as ``[N, h, H / h, w, W / w, C]``: the pixels that share a latent position; no copy."""
    return x.permute(0, 2, 3, 1).unflatten(2, (w, -1)).unflatten(1, (h, -1))


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
    """Formula of ``ops.spatial_norm_act``."""
    dtype = compute_dtype(x.dtype)
    normed = _affine_norm(x.to(dtype), groups, weight.to(dtype), offset.to(dtype), eps)
    maps = (map_of(latents, *conv, dtype) for conv in ((gain, gain_offset), (bias, bias_offset)))
    return _finish(modulate_by_maps(normed, *maps), x, activate)


def map_of(latents: Tensor, weight: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the 1x1 convolution ``[N or 1, C, h, w]`` of ``latents`` ``[N or 1, z, h, w]`` in ``dtype``."""
    return F.conv2d(latents.to(dtype), weight[:, :, None, None].to(dtype), offset.to(dtype))


def modulate_by_maps(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Return ``x * up(gain) + up(bias)`` for ``x`` ``[N, C, H, W]`` and maps ``[N or 1, C, h, w]``."""
    return _ModulateByMaps.apply(x, gain, bias)


class _ModulateByMaps(torch.autograd.Function):
    """Has a backward of its own, in which pooling adds up the blocks (EXACTNESS.md, "Gradients of maps")."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, gain)
        low, high = (_as_blocks(m.to(x.dtype)) for m in (bias, gain))
        return _as_maps(torch.addcmul(low, blocks_of(x, *gain.shape[-2:]), high))

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain = ctx.saved_tensors
        wants_x, wants_gain, wants_bias = ctx.needs_input_grad
        return (
            _as_maps(blocks_of(grad, *gain.shape[-2:]) * _as_blocks(gain.to(grad.dtype))) if wants_x else None,
            _sum_of_blocks(grad * x, gain) if wants_gain else None,
            _sum_of_blocks(grad, gain) if wants_bias else None,
        )


def _as_blocks(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1)[:, :, None, :, None]  # [N or 1, h, 1, w, 1, C]


def _as_maps(blocks: Tensor) -> Tensor:
    return blocks.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _sum_of_blocks(x: Tensor, maps: Tensor) -> Tensor:
    """Return ``x`` ``[N, C, H, W]`` added up to the shape of the maps, in their dtype."""
    sides = [full // small for full, small in zip(x.shape[-2:], maps.shape[-2:], strict=True)]
    total = F.avg_pool2d(x, sides, divisor_override=1)
    return (total if len(total) == len(maps) else total.sum(0, keepdim=True)).to(maps.dtype)
