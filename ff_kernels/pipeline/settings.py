"""What a clip is made with: levels, sizes, steps, strengths, seed; checked in one place."""

import math
from dataclasses import dataclass, replace

from ..errors import InputError

# Sampling steps of both releases for pictures and keyframes.
DEFAULT_STEPS = 50
# Interpolation passes and frames per second of each level (paper section 4.3: 2 to 8 to 30 frames per second).
LEVELS = {"low": (0, 2.0), "medium": (1, 8.0), "high": (2, 30.0)}


@dataclass(frozen=True)
class Settings:
    """What a clip is made with; None takes the model's own default.

    Attributes:
        fps: "low", "medium" or "high": 0, 1 or 2 interpolation passes, shown at 2, 8 or 30 frames per second.
        width: pixels, a multiple of ``Pipeline.multiple``.
        height: pixels, a multiple of ``Pipeline.multiple``.
        steps: sampling steps of the keyframes (and, release 1.0, of the interpolation).
        guidance_scale: w of the keyframes, 0 and up; 5 acts as a "cfg" of 6.
        image_guidance: release 1.1: weight of the first frame.
        interpolation_guidance: w of the interpolation; more than about 0.5 collapses onto the keyframes.
        motion_score: release 1.1: 1, 10, 50 or 100.
        noise_level: release 1.1: diffusion steps of noise on the first frame.
        num_frames: keyframes; default what the network was trained on.
        seed: 0 .. 2**63 - 1.
        is_mended: mend the releases' mistakes that show in pictures instead of keeping them: chunk seams and
            frame-0 attention of the 1.1 decoder, uniform noise on the first frame, black bars around a small
            picture, 8-bit truncation on the way (models/RELEASES.md says "mended" at each).
        is_stacked: run guidance branches in one batch, which is faster; False needs less memory; None decides by what
            the device has left.
    """

    fps: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    image_guidance: float = 2.0
    interpolation_guidance: float | None = None
    motion_score: int = 10
    noise_level: int = 20
    num_frames: int | None = None
    seed: int = 0
    is_mended: bool = False
    is_stacked: bool | None = None


def resolve_settings(settings: Settings, defaults: Settings, multiple: int, trained_frames: int) -> Settings:
    """Fill in defaults where a value is None, and check every value.

    Args:
        settings: the caller's.
        defaults: the model's.
        multiple: width and height must be multiples of this many pixels.
        trained_frames: keyframes the network was trained on.

    Raises:
        InputError: naming the setting, what it may be and what it was.
    """
    filled = {name: getattr(defaults, name) for name, value in vars(settings).items() if value is None}
    settings = replace(settings, **filled)
    if settings.fps not in LEVELS:
        raise InputError(f"expected fps low, medium or high, got {settings.fps!r}: choose one of them")
    for name in ("width", "height"):
        value = getattr(settings, name)
        if value <= 0 or value % multiple:
            near = max(1, round(value / multiple)) * multiple
            raise InputError(
                f"expected a {name} that is a positive multiple of {multiple} pixels, got {value}: take {near}"
            )
    if settings.steps is not None and not 1 <= settings.steps <= 1000:
        raise InputError(f"expected 1 to 1000 steps, got {settings.steps}: the releases use 50")
    if not 0 <= settings.seed < 2**63:
        raise InputError(f"expected a seed from 0 to 2**63 - 1, got {settings.seed}: choose one in this range")
    frames = trained_frames if settings.num_frames is None else settings.num_frames
    least = 1 if settings.fps == "low" else 2
    if frames < least:
        raise InputError(f"expected at least {least} keyframes for fps {settings.fps}, got {frames}: ask for more")
    for name in ("guidance_scale", "image_guidance", "interpolation_guidance"):
        value = getattr(settings, name)
        if value is not None and not math.isfinite(value):
            raise InputError(f"expected a finite {name}, got {value}: the releases use 5, 2 and 0.25")
    scale = 5.0 if settings.guidance_scale is None else settings.guidance_scale
    return replace(settings, num_frames=frames, guidance_scale=scale)
