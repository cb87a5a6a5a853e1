"""Mixing the guidance branches of a prediction."""

from collections.abc import Callable

from torch import Tensor

from ..errors import InputError

# What a sampler calls: noisy samples and the number of the step, to eps or v.
Predict = Callable[[Tensor, int], Tensor]
# The network under one or more stacked guidance branches: ``[branches * N, ...]`` to the same.
Branches = Callable[[Tensor, int], Tensor]


def mix_text(conditional: Tensor, unconditional: Tensor, guidance_scale: float) -> Tensor:
    """Mix two branches: ``(w + 1) * cond - w * uncond``, so that w is the usual "cfg" less one.

    Source: paper section 4.3 and both releases; golden ``v10_pipeline``.
    """
    return (guidance_scale + 1.0) * conditional - guidance_scale * unconditional


def mix_text_image(
    text_image: Tensor, image: Tensor, neither: Tensor, guidance_scale: float, image_guidance: float
) -> Tensor:
    """Mix three branches: ``(1 - wi) * none + (wi - w) * image + w * (text and image)``.

    Source: release 1.1; golden ``v11_pipeline``.
    """
    return (1 - image_guidance) * neither + (image_guidance - guidance_scale) * image + guidance_scale * text_image


def guided(branches: list[Branches], mix: Callable[..., Tensor], counts: list[int]) -> Predict:
    """Return a prediction that runs the branches and mixes them.

    Args:
        branches: one callable per group of stacked branches: all in one (fastest), or one each (least memory).
        mix: takes the branches in order, returns their mix.
        counts: branches stacked in each callable, in order.

    Raises:
        InputError: if a count is not positive.
    """
    if len(branches) != len(counts) or min(counts) < 1:
        raise InputError(f"expected a positive count for each of {len(branches)} branch groups, got {counts}: fix them")

    def predict(x: Tensor, step: int) -> Tensor:
        outputs: list[Tensor] = []
        for branch, count in zip(branches, counts, strict=True):
            outputs += branch(x, step).chunk(count)
        return mix(*outputs)

    return predict
