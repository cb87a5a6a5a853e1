"""Conditioning to the context the U-Nets read: projected text, its mask, its length, or the learned null text."""

from typing import Any

import torch
from torch import Tensor

from ...ff_kernels.errors import InputError
from ...ff_kernels.stages.run import Text
from .latent import MARKED, Conditioning, only_entry

# Two columns behind a text carry what core's nodes would lose when they mix texts: how much of the learned null text
# belongs to a token, and whether the token counts. Averaging, joining and scaling treat them as they treat the text.
MARKS = 2


def mark(context: Tensor, mask: Tensor, *, is_null: bool) -> Tensor:
    """Return the tensor of a conditioning: ``[B, L, D + 2]``.

    Args:
        context: ``[B, L, D]``; of the null text only its size is read, as its values are in the U-Net's file.
        mask: ``[B, L]``, non-zero where a token counts.
        is_null: whether it is the learned null text, which is token 0.
    """
    valid = mask.to(context)
    share = torch.zeros_like(valid)
    if is_null:
        context = torch.zeros_like(context)
        valid = torch.zeros_like(valid)
        valid[:, 0] = share[:, 0] = 1
    return torch.cat([context, share[..., None], valid[..., None]], dim=-1)


def context_of(
    tensor: Tensor, options: dict[str, Any], null_embedding: Tensor | None, width: int, where: str
) -> tuple[Tensor, Tensor]:
    """Return context ``[1, L, D]`` and mask ``[1, L]`` of one conditioning entry.

    Args:
        tensor: what a CLIP returned, or what core's nodes made of it.
        options: its dictionary.
        null_embedding: ``[D]`` of the checkpoint.
        width: D that the network reads.
        where: the input, for messages.

    Raises:
        InputError: if the conditioning is of another model, or null text is asked of a file that has none.
    """
    if tensor.ndim != 3 or tensor.shape[-1] not in (width, width + MARKS) or tensor.shape[1] == 0:
        found = [*tensor.shape[:-1], max(tensor.shape[-1] - MARKS, 0)] if is_marked(options) else list(tensor.shape)
        raise InputError(
            f"{where} expected text of this model, {width} wide, got {found}: encode the prompt with "
            "FusionFrames Load Text Encoder, with the projection of the same release"
        )
    if tensor.shape[-1] == width:
        mask = options.get("attention_mask")
        if mask is None:
            mask = torch.ones(tensor.shape[:2], dtype=torch.long)
        return tensor, mask.reshape(tensor.shape[:2]).long()
    context, share, valid = tensor[..., :width], tensor[..., width : width + 1], tensor[..., width + 1]
    if bool(share.any()):
        if null_embedding is None:
            raise InputError(
                f"{where} expected a null embedding in the model file for an empty prompt, found none: write a "
                "negative prompt, or convert the authors' file, which holds one"
            )
        context = context + share * null_embedding.to(context)
    return context, (valid != 0).long()


def is_marked(options: dict[str, Any]) -> bool:
    """Return whether a conditioning comes from an encoder of ours."""
    return bool(options.get(MARKED))


def text_of(
    conditioning: Conditioning, null_embedding: Tensor | None, width: int, clips: int, where: str, like: Tensor
) -> Text:
    """Return the text of a conditioning for ``clips`` clips, in the dtype and on the device of ``like``."""
    tensor, options = only_entry(conditioning, where)
    context, mask = context_of(tensor, options, null_embedding, width, where)
    return Text.of(context[:1].expand(clips, -1, -1).to(like), mask[:1].expand(clips, -1).to(like.device))
