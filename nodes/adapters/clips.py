"""Which clips a batch holds: core numbers them when it takes a batch apart, and draws their noise by these numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NUMBERS = "batch_index"
# How far the noise of a seed is followed in search of a clip's: a batch taken from a larger one than this is not found.
MOST = 64


def numbers_of(latent: Mapping[str, Any]) -> list[int]:
    """Return the number of each clip of a LATENT in the batch it was taken from: 0, 1, .. where nobody says."""
    clips = latent["samples"].shape[0]
    stored = latent.get(NUMBERS)
    return list(stored) if isinstance(stored, Sequence) and len(stored) == clips else list(range(clips))


def clip_numbers(noise: Tensor, seed: int) -> list[int]:
    """Return the numbers of clips by the start noise that core drew for them.

    Core hands the numbers to nobody, but draws clip after clip from one stream and keeps those asked for.

    Args:
        noise: ``[B, ...]`` as core drew it.
        seed: of the run.

    Returns:
        B numbers; 0, 1, .. where the noise is not that of the seed.
    """
    wanted, found = [clip.detach().float().cpu() for clip in noise], {}
    if not noise.any():
        return list(range(len(wanted)))
    generator = torch.Generator().manual_seed(seed % 2**64)
    for number in range(MOST):
        drawn = torch.randn((1, *noise.shape[1:]), generator=generator)[0]
        found.update({i: number for i, clip in enumerate(wanted) if i not in found and torch.equal(clip, drawn)})
        if len(found) == len(wanted):
            return [found[i] for i in range(len(wanted))]
    return list(range(len(wanted)))
