"""Conditioning to the context the U-Nets read: projected text, its mask, its length, or the learned null text."""

from typing import Any

import torch
from torch import Tensor

from ...ff_kernels.errors import InputError
from ...ff_kernels.models.text_encoder import null_context
from ...ff_kernels.stages.run import Text
from .latent import NULL, Conditioning, only_entry


def context_of(
    tensor: Tensor, options: dict[str, Any], null_embedding: Tensor | None, width: int, where: str
) -> tuple[Tensor, Tensor]:
    """Return context ``[1, L, D]`` and mask ``[1, L]`` of one conditioning entry.

    Args:
        tensor: what a CLIP returned.
        options: its dictionary.
        null_embedding: ``[D]`` of the checkpoint.
        width: D that the network reads.
        where: the input, for messages.

    Raises:
        InputError: if the conditioning is of another model, or null text is asked of a file that has none.
    """
    if tensor.ndim != 3 or tensor.shape[-1] != width or tensor.shape[1] == 0:
        raise InputError(
            f"{where} expected text of this model, {width} wide, got {list(tensor.shape)}: encode the prompt with "
            "FusionFrames Load Text Encoder, with the projection of the same release"
        )
    if options.get(NULL):
        if null_embedding is None:
            raise InputError(
                f"{where} expected a null embedding in the model file for an empty prompt, found none: write a "
                "negative prompt, or convert the authors' file, which holds one"
            )
        context, mask = null_context(null_embedding.to(tensor), 1, tensor.shape[1])
        return context, mask
    mask = options.get("attention_mask")
    if mask is None:
        mask = torch.ones(tensor.shape[:2], dtype=torch.long)
    return tensor, mask.reshape(tensor.shape[:2]).long()


def text_of(
    conditioning: Conditioning, null_embedding: Tensor | None, width: int, clips: int, where: str, like: Tensor
) -> Text:
    """Return the text of a conditioning for ``clips`` clips, in the dtype and on the device of ``like``."""
    tensor, options = only_entry(conditioning, where)
    context, mask = context_of(tensor, options, null_embedding, width, where)
    return Text.of(context[:1].expand(clips, -1, -1).to(like), mask[:1].expand(clips, -1).to(like.device))
