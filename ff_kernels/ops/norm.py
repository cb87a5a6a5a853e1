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
    # A whole group of a small picture fits one program, which then reads it once from memory (kernels.md, rank 1).
    is_small = x.shape[2] * x.shape[3] <= ONE_PASS_POSITIONS
    return Cost(1 if is_small else 2, 0, (1 if is_small else 2) * bytes_of(x) + bytes_of(out) + sides)


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
    "(Tensor x, Tensor gain, Tensor bias, Tensor weight, Tensor offset, int groups, bool activate, float eps)"
    " -> Tensor",
    _like_channels_last,
    _cost,
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
    gain: Tensor,
    bias: Tensor,
    weight: Tensor,
    offset: Tensor,
    groups: int,
    *,
    activate: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """Normalise and modulate by maps at latent resolution: ``(norm(x) * weight + offset) * up(gain) + up(bias)``.

    The maps are 1x1 convolutions of the latent. Nearest upsampling commutes with a 1x1 convolution, so they are
    computed at latent size and looked up at ``(y // up, x // up)``, with the same result (kernels.md, E15).

    Args:
        x: ``[N, C, H, W]``, channels-last in memory for the fast kernels.
        gain: ``[N or 1, C, h, w]`` with H a multiple of h and W of w.
        bias: as ``gain``.
        weight: ``[C]`` gain of the group norm.
        offset: ``[C]`` bias of the group norm.
        groups: channel groups, a divisor of C.
        activate: apply SiLU to the result.
        eps: added to the variance.

    Returns:
        ``[N, C, H, W]``, channels-last, in the dtype of ``x``; 16-bit input is computed in float32, rounded once.

    Raises:
        ShapeError: if the maps do not divide the sides of ``x``.

    Source: releases 1.0 and 1.1, class SpatialNorm (Sber-MoVQGAN); golden ``v10_movq``.
    """
    (H, W), (h, w) = x.shape[-2:], gain.shape[-2:]
    if H % h or W % w or gain.shape != bias.shape or gain.shape[0] not in (1, x.shape[0]):
        raise ShapeError(
            f"spatial_norm_act expected maps [{x.shape[0]} or 1, {x.shape[1]}, h, w] whose sides divide {H} x {W}, got "
            f"{list(gain.shape)} and {list(bias.shape)}: make both maps from the latent of x"
        )
    return _spatial_norm_act(x, gain, bias, weight, offset, groups, activate, eps)
