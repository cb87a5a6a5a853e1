"""What a run returns: the latents of a clip, and the clip itself."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LatentClip:
    """A sampled clip that is not decoded yet.

    Attributes:
        fps: frames per second.
        keyframes: ``[T, 4, h, w]`` latents of the first stage, on the CPU.
        latents: ``[F, 4, h, w]`` latents of all frames, on the CPU.
        seconds: wall time of every stage.
    """

    fps: float
    keyframes: Tensor
    latents: Tensor
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Clip(LatentClip):
    """A finished clip.

    Attributes:
        frames: ``[F, H, W, 3]`` in 0..1, on the CPU.
    """

    frames: Tensor
