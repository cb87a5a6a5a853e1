"""Contexts that tell captions apart: the projection whitens what the encoder says about them."""

import torch
from torch import Tensor

from ...models.text_encoder import TextProjection

# Directions with less than this share of the largest variance are left small: they are noise of the training.
FLOOR = 1e-3


@torch.no_grad()
def spread_projection(projection: TextProjection, hidden: Tensor) -> None:
    """Set the projection so that tokens of captions differ in all directions alike.

    An encoder trained to classify captions gives every token nearly the same vector, and words that matter little to
    the loss, such as left and right, hardly differ. The U-Net then learns colours at once and directions never. Here
    the common vector is projected out and the rest whitened.

    Args:
        projection: changed in place; the linear layer has no bias and the norm none that matters.
        hidden: ``[N, d_model]`` last hidden states of many caption tokens.
    """
    mean = hidden.mean(dim=0)
    unit = mean / mean.norm()
    keep = torch.eye(len(mean), dtype=hidden.dtype) - torch.outer(unit, unit)
    values, vectors = torch.linalg.eigh(torch.cov((hidden @ keep).T))
    scale = values.clamp(min=FLOOR * values.max()).rsqrt()
    # The direction that was projected out has no variance, and must not be blown up by its rounding errors.
    scale[values < 1e-6 * values.max()] = 0
    outputs = projection[0].weight.shape[0]
    # A rotation spreads the strongest directions over all channels; without it LayerNorm would see a few of them.
    rotation, _ = torch.linalg.qr(torch.randn(outputs, len(mean), generator=torch.Generator().manual_seed(0)))
    projection[0].weight.copy_(rotation @ torch.diag(scale) @ vectors.T @ keep)
    projection[1].weight.fill_(1)
    projection[1].bias.zero_()
