"""Steps and noise of a batch."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..sampling.levels import Levels
from ..sampling.schedule import make_schedule_v10

# Most clips are drawn at the releases' 50 steps; the rest make other step counts usable.
STEP_COUNTS = (50, 50, 50, 50, 50, 20, 25, 30, 40, 100)


@lru_cache(maxsize=8)
def noise_levels(steps: int) -> tuple[Tensor, Tensor]:
    """Return timesteps and cumulative alphas of a run, ``[steps]`` each, the noisiest first."""
    schedule = make_schedule_v10(steps)
    return schedule.timesteps, schedule.coefficients.signal.square()


def draw_noise_levels(rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor]:
    """Draw a timestep and its cumulative alpha per clip, spread evenly over the batch: ``[B]`` each."""
    places = rng.permutation(batch) + rng.random(batch)
    timesteps, bars = [], []
    for place in places / batch:
        steps, levels = noise_levels(STEP_COUNTS[rng.integers(len(STEP_COUNTS))])
        step = int(place * len(steps))
        timesteps.append(steps[step])
        bars.append(levels[step])
    return torch.stack(timesteps), torch.stack(bars)


def draw_normal(rng: np.random.Generator, like: Tensor) -> Tensor:
    """Draw standard normal numbers in the shape of ``like``, float32."""
    return torch.from_numpy(rng.standard_normal(tuple(like.shape), dtype=np.float32))


def draw_trained_levels(rng: np.random.Generator, batch: int, levels: Levels) -> tuple[Tensor, Tensor]:
    """Draw a timestep that a network was trained at, and its cumulative alpha, per clip: ``[B]`` each."""
    places = (rng.permutation(batch) + rng.random(batch)) / batch
    picks = torch.from_numpy((places * len(levels.sigmas)).astype(np.int64))
    return picks, levels.bars_of(picks)[:-1].float()
