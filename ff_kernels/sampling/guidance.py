"""Weights of the guidance branches, and running the branches together or in turn."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The network under K stacked guidance branches: samples ``[N, ...]`` and the number of the step to ``[K * N, ...]``.
Predict = Callable[[Tensor, int], Tensor]


def text_weights(guidance_scale: float) -> tuple[float, float]:
    """Return the weights of (text, null): ``(w + 1) * cond - w * uncond``, so that w is the usual "cfg" less one.

    Source: paper section 4.3 and both releases; golden ``v10_pipeline``.
    """
    return guidance_scale + 1.0, -guidance_scale


def text_image_weights(guidance_scale: float, image_guidance: float) -> tuple[float, float, float]:
    """Return the weights of (text and image, image, neither): ``w``, ``wi - w``, ``1 - wi``.

    Source: release 1.1; golden ``v11_pipeline``.
    """
    return guidance_scale, image_guidance - guidance_scale, 1 - image_guidance


def in_turn(branches: Sequence[Predict]) -> Predict:
    """Return a prediction that runs branches one after the other and stacks what they say: least memory."""
    return lambda x, step: torch.cat([branch(x, step) for branch in branches])
