"""Random numbers with an owner: drawn on the CPU, one stream per clip, so that a seed gives one clip anywhere."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """Source of random tensors; the sampler never touches a global generator."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return the next standard normal tensor of ``shape``, float32 on the CPU."""
        ...

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return the next uniform 0..1 tensor of ``shape``, float32 on the CPU."""
        ...


# Streams of one clip: every stage has its own, so that one stage's settings do not change another's noise.
STREAMS = 4
KEYFRAMES, PICTURE, FIRST_PASS, SECOND_PASS = range(STREAMS)


def stage_seeds(seed: int, clips: int | Sequence[int], stream: int) -> list[int]:
    """Return the seed of every clip of a batch in one stage; clip i of ``seed`` is the first clip of ``seed + i``.

    Args:
        seed: of clip 0.
        clips: how many there are, or which: their numbers.
        stream: of the stage.
    """
    numbers = range(clips) if isinstance(clips, int) else clips
    return [((seed + clip) * STREAMS + stream) % 2**63 for clip in numbers]


def pass_stream(number: int) -> int:
    """Return the stream of interpolation pass ``number``, counted from 0."""
    return (FIRST_PASS, SECOND_PASS)[number % 2]


class SeededNoise:
    """One stream per clip, stacked along the first axis: a clip is the same alone and inside any batch.

    Args:
        seeds: one seed per clip, 0 .. 2**63 - 1.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def _draw(self, draw: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        share, rest = divmod(shape[0], len(self.generators))
        if rest:
            raise ValueError(f"expected a first side that {len(self.generators)} clips divide, got {list(shape)}")
        return torch.cat([draw((share, *shape[1:]), generator=g) for g in self.generators])

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return the next standard normal tensor; each clip owns an equal share of the first axis."""
        return self._draw(torch.randn, shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return the next uniform 0..1 tensor; each clip owns an equal share of the first axis."""
        return self._draw(torch.rand, shape)
