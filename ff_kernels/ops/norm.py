"""Group normalisation with a modulation that comes from a time vector (U-Nets) or from a latent map (MoVQ)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_mod(x: Tensor, modulation: Tensor, groups: int, *, activate: bool = False, eps: float = 1e-5) -> Tensor:
    """Normalise and modulate: ``norm(x) * (1 + scale) + shift``, optionally through SiLU.

    Args:
        x: ``[N, C, H, W]`` activations.
        modulation: ``[N, 2C]``, scale in the first half, shift in the second.
        groups: channel groups of the normalisation, a divisor of C.
        activate: apply SiLU to the result.
        eps: added to the variance.

    Returns:
        ``[N, C, H, W]`` in the dtype and memory format of ``x``.

    Source: releases 1.0 and 1.1, class ConditionalGroupNorm; golden ``v10_keyframe_unet``.
    """
    scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
    x = torch.addcmul(shift, F.group_norm(x, groups, eps=eps), scale + 1)
    return F.silu(x) if activate else x


def spatial_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Modulate normalised activations by maps given at latent resolution: ``x * up(gain) + up(bias)``.

    The maps are 1x1 convolutions of the latent. Nearest upsampling commutes with a 1x1 convolution, so they
    are computed at latent size and only then enlarged, with the same result (kernels.md, E15).

    Args:
        x: ``[N, C, H, W]`` normalised activations.
        gain: ``[N or 1, C, h, w]`` with H a multiple of h and W a multiple of w.
        bias: as ``gain``.

    Returns:
        ``[N, C, H, W]``.

    Source: releases 1.0 and 1.1, class SpatialNorm (Sber-MoVQGAN); golden ``v10_movq``.
    """
    size = x.shape[-2:]
    if gain.shape[-2:] != size:
        gain = F.interpolate(gain, size=size, mode="nearest")
        bias = F.interpolate(bias, size=size, mode="nearest")
    return torch.addcmul(bias, x, gain)
