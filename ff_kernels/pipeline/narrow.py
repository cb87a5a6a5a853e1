"""The decoder in 16 bit, for those clips whose pictures stay the same.

After few steps the decoder is half of the time of a clip on a GPU. Release 1.1 keeps it in float32; whether 16 bit do
is asked of the clip itself: some of its frames are decoded both ways first.
"""

import copy
import math
import warnings

import torch
from torch import Tensor

from ..models.movq import MoVQ
from ..stages.decoding import chunk_sizes, decode

# An error of 0.8 of the 255 steps of a video file, whose own rounding is one of 0.3 (58.9 dB).
LEAST_DB = 50.0


def narrowed(movq: MoVQ, latents: Tensor, dtype: torch.dtype, *, shared_map: bool = False) -> MoVQ:
    """Return a copy of a decoder in ``dtype``, or the decoder itself where the copy shows other pictures.

    Args:
        movq: decoder in float32.
        latents: ``[T, 4, h, w]`` of the clip to decode; its first chunk is decoded in both.
        dtype: float16 or bfloat16; float32 is the decoder itself.
        shared_map: see ``stages.decoding.decode``.
    """
    if dtype is torch.float32:
        return movq
    probe = latents[: chunk_sizes(len(latents))[0]]
    narrow = copy.deepcopy(movq).to(dtype)
    exact, near = (
        decode(network, probe.to(network.quant_conv.weight.dtype), shared_map=shared_map).float()
        for network in (movq, narrow)
    )
    db = -10 * math.log10(max((exact - near).square().mean().item(), 1e-20))
    # Not a number where 16 bit overflow, and so not at least anything.
    if db >= LEAST_DB:
        return narrow
    warnings.warn(
        f"the decoder in {str(dtype).removeprefix('torch.')} is {db:.1f} dB from float32, below {LEAST_DB:g}: this "
        "clip is decoded in float32",
        stacklevel=3,
    )
    return movq
