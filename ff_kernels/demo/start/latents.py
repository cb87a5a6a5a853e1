"""Bringing a trained MoVQ's latents into the range that the 1.0 sampler can draw, without changing its pictures."""

import torch
from torch import Tensor, nn

from ...models.movq import MoVQ, SpatialNorm

TAIL = 0.001


@torch.no_grad()
def fit_latents_to_range(movq: MoVQ, latents: Tensor) -> None:
    """Shift and scale every latent channel so that all but its tails lie in -1..1.

    The 1.0 sampler divides an estimate by its 98 % quantile where that is above 1, so a frame whose latents are
    larger throughout, such as a plain white background, could never be drawn. Encoder end and decoder
    inputs are 1x1 convolutions, so the change of units is exact.

    Args:
        movq: image MoVQ, changed in place.
        latents: ``[N, z, h, w]`` of many frames, as the unchanged encoder gives them.
    """
    values = latents.transpose(0, 1).flatten(1).sort(dim=1).values  # [z, N * h * w]
    tail = int(TAIL * values.shape[1])
    low, high = values[:, tail], values[:, -1 - tail]
    shift, gain = (low + high) / 2, 2 / (high - low)
    last = movq.quant_conv
    last.bias.copy_((last.bias - shift) * gain)
    last.weight.mul_(gain[:, None, None, None])
    norms = [module for module in movq.decoder.modules() if isinstance(module, SpatialNorm)]
    for conv in (movq.post_quant_conv, *(conv for norm in norms for conv in (norm.conv_y, norm.conv_b))):
        _read_fitted(conv, shift, gain)


def _read_fitted(conv: nn.Module, shift: Tensor, gain: Tensor) -> None:
    conv.bias.add_(conv.weight[:, :, 0, 0] @ shift)
    conv.weight.div_(gain[None, :, None, None])
