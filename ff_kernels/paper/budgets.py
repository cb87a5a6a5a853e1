"""What every run of a comparison is given: equal within a group, small enough for one processor core in an hour."""

from dataclasses import asdict, dataclass, replace

from ..training.loop import TrainConfig

SEEDS = 3
SAMPLING_STEPS = 20
# Steps of ours that take the time of one step of the masked baseline at these sizes (0.23 s and 1.46 s, one core).
TIME_FACTOR = 6
DECODER_FRAMES = 8


@dataclass(frozen=True)
class Budget:
    """Training and evaluation of one run.

    Attributes:
        train: optimiser steps, clips per step, learning rate.
        clips: training clips whose latents are worked out once; 0 where clips are drawn anew.
        evaluated: held-out captions or clips.
        long_clips: held-out clips of 65 frames (interpolation only).
    """

    train: TrainConfig
    clips: int
    evaluated: int
    long_clips: int = 0

    def scaled(self, share: float) -> "Budget":
        """Return this budget at a share of its steps, clips and held-out clips; at least one of each."""
        return replace(
            self,
            train=replace(self.train, steps=_scale(self.train.steps, share)),
            clips=_scale(self.clips, share),
            evaluated=_scale(self.evaluated, share),
            long_clips=_scale(self.long_clips, share),
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return asdict(self)


def _scale(count: int, share: float) -> int:
    return max(1, round(count * share)) if count else 0


_TRAINING = TrainConfig(steps=240, batch=8, learning_rate=2e-3, warmup=20, ema_decay=0.98)
VARIANTS = Budget(_TRAINING, clips=480, evaluated=24)
GAPS = Budget(replace(_TRAINING, steps=200, batch=2), clips=160, evaluated=3, long_clips=1)
DECODERS = Budget(TrainConfig(steps=40, batch=2, learning_rate=1e-4, warmup=5, ema_decay=0.9), clips=0, evaluated=16)
