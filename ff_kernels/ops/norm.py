"""Normalisation operations."""

import torch
from torch import Tensor

from ..errors import ShapeError
from .eager import norm as formulas
from .registry import Cost, Operation, bytes_of


def _like_channels_last(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _cost(x: Tensor, *small: object, out: Tensor) -> Cost:
    """Count the statistics and the result as two kernels: x is read twice, the result written once."""
    sides = bytes_of(*(t for t in small if isinstance(t, Tensor)))
    # A whole group of a small picture fits one program, which then reads it once (EXACTNESS.md, "Fused norm").
    is_small = x.shape[2] * x.shape[3] <= ONE_PASS_POSITIONS
    return Cost(1 if is_small else 2, 0, (1 if is_small else 2) * bytes_of(x) + bytes_of(out) + sides)


def _spatial_cost(x: Tensor, latents: Tensor, *small: object, out: Tensor) -> Cost:
    """Count what ``_cost`` does, and the two maps, worked out anew for every pixel."""
    cost = _cost(x, latents, *small, out=out)
    return Cost(cost.launches, 4 * latents.shape[1] * out.numel(), cost.bytes)


# Positions of a picture up to which one kernel does statistics and result.
ONE_PASS_POSITIONS = 1024

_group_norm_mod = Operation(
    "group_norm_mod",
    "(Tensor x, Tensor rows, int groups, bool cyclic, bool activate, float eps) -> Tensor",
    _like_channels_last,
    _cost,
    formulas.group_norm_mod,
)
_spatial_norm_act = Operation(
    "spatial_norm_act",
    "(Tensor x, Tensor latents, Tensor gain, Tensor gain_offset, Tensor bias, Tensor bias_offset, Tensor weight,"
    " Tensor offset, int groups, bool activate, float eps) -> Tensor",
    _like_channels_last,
    _spatial_cost,
    formulas.spatial_norm_act,
)


def group_norm_mod(
    x: Tensor, rows: Tensor, groups: int, *, cyclic: bool = False, activate: bool = False, eps: float = 1e-5
) -> Tensor:
    """Normalise and modulate: ``norm(x) * (1 + scale) + shift``, optionally through SiLU.

    Args:
        x: ``[N, C, H, W]`` activations, channels-last in memory for the fast kernels.
        rows: ``[R, 2C]``, scale in the first half, shift in the second, R a divisor of N.
        groups: channel groups of the normalisation, a divisor of C.
        cyclic: sample n uses row ``n % R`` instead of ``n // (N / R)``.
        activate: apply SiLU to the result.
        eps: added to the variance.

    Returns:
        ``[N, C, H, W]``, channels-last, in the dtype of ``x``; 16-bit input is computed in float32, rounded once.

    Raises:
        ShapeError: if ``groups`` does not divide C, or R does not divide N, or a row is not 2C long.

    Source: releases 1.0 and 1.1, class ConditionalGroupNorm; golden ``v10_keyframe_unet``.
    """
    N, C = x.shape[:2]
    if C % groups or N % rows.shape[0] or rows.shape[1] != 2 * C:
        raise ShapeError(
            f"group_norm_mod expected channels in {groups} groups and rows [R, {2 * C}] with R a divisor of {N}, got x "
            f"{list(x.shape)} and rows {list(rows.shape)}: pass one row of scales and shifts per run of samples"
        )
    return _group_norm_mod(x, rows, groups, cyclic, activate, eps)


def spatial_norm_act(
    x: Tensor,
    latents: Tensor,
    gain: tuple[Tensor, Tensor],
    bias: tuple[Tensor, Tensor],
    affine: tuple[Tensor, Tensor],
    groups: int,
    *,
    activate: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """Normalise and modulate by maps of the latent: ``(norm(x) * weight + offset) * up(gain) + up(bias)``.

    Both maps are 1x1 convolutions of the latent. Nearest upsampling commutes with those, so a kernel works a value of a
    map out from the latent at ``(y // up, x // up)``, and no map is ever written to memory (EXACTNESS.md, "Maps at the
    latent's size").

    Args:
        x: ``[N, C, H, W]``, channels-last in memory for the fast kernels.
        latents: ``[N or 1, z, h, w]`` with H a multiple of h and W of w.
        gain: weight ``[C, z]`` and bias ``[C]`` of the convolution that makes the first map.
        bias: as ``gain``, of the second map.
        affine: weight and offset ``[C]`` of the group norm.
        groups: channel groups, a divisor of C.
        activate: apply SiLU to the result.
        eps: added to the variance.

    Returns:
        ``[N, C, H, W]``, channels-last, in the dtype of ``x``; 16-bit input is computed in float32, rounded once.

    Raises:
        ShapeError: if the latents do not divide the sides of ``x``, or the weights do not fit both.

    Source: releases 1.0 and 1.1, class SpatialNorm (Sber-MoVQGAN); golden ``v10_movq``.
    """
    (N, C, H, W), (maps, z, h, w) = x.shape, latents.shape
    if H % h or W % w or maps not in (1, N) or any(weight.shape != (C, z) for weight, _ in (gain, bias)):
        raise ShapeError(
            f"spatial_norm_act expected latents [{N} or 1, z, h, w] whose sides divide {H} x {W} and weights [{C}, z], "
            f"got {list(latents.shape)}, {list(gain[0].shape)} and {list(bias[0].shape)}: pass the latent of x and the "
            "two convolutions of this norm"
        )
    return _spatial_norm_act(x, latents, *gain, *bias, *affine, groups, activate, eps)
