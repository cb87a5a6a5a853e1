"""What a clip is made with: levels, sizes, steps, strengths, seed; checked in one place."""

import math
from dataclasses import dataclass, replace

from ..errors import InputError
from ..models.configs import check_keyframes, check_sides
from ..stages.presets import RELEASED, Plan, few_steps, find_plan, find_preset, with_guidance
from ..stages.releases import V10, V11, Release

# Interpolation passes and frames per second of each level (paper section 4.3: 2 to 8 to 30 frames per second).
LEVELS = {"low": (0, 2.0), "medium": (1, 8.0), "high": (2, 30.0)}


@dataclass(frozen=True)
class Settings:
    """What a clip is made with; None takes the model's own default.

    Attributes:
        fps: "low", "medium" or "high": 0, 1 or 2 interpolation passes, shown at 2, 8 or 30 frames per second.
        width: pixels, a multiple of ``Pipeline.multiple``.
        height: pixels, a multiple of ``Pipeline.multiple``.
        preset: "released", "balanced" or "fast": steps and solvers of both stages; default released.
        steps: sampling steps of the keyframes, and with the released preset of release 1.0, which has one number for
            both, of the interpolation too.
        interpolation_steps: sampling steps of each interpolation pass.
        solver: of the keyframes, in place of the preset's: "released" or a key of ``sampling.solvers.SOLVERS``.
        interpolation_solver: as ``solver``, of the interpolation.
        guided: noise / signal ratios between which the guidance of the keyframes acts; default everywhere.
        narrow_decoder: decode in 16 bit where that is faster and within 58.9 dB of float32; default the preset's.
        guidance_scale: w of the keyframes, 0 and up; 5 acts as a "cfg" of 6.
        image_guidance: release 1.1: weight of the first frame.
        interpolation_guidance: w of the interpolation; more than about 0.5 collapses onto the keyframes.
        motion_score: release 1.1: 1, 10, 50 or 100.
        noise_level: release 1.1: diffusion steps of noise on the first frame.
        keyframes: how many; default what the network was trained on.
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
    preset: str | None = None
    steps: int | None = None
    interpolation_steps: int | None = None
    solver: str | None = None
    interpolation_solver: str | None = None
    guided: tuple[float, float] | None = None
    narrow_decoder: bool | None = None
    guidance_scale: float | None = None
    image_guidance: float = V11.image_guidance
    interpolation_guidance: float | None = None
    motion_score: int = V11.motion_score
    noise_level: int = V11.noise_level
    keyframes: int | None = None
    seed: int = 0
    is_mended: bool = False
    is_stacked: bool | None = None

    @property
    def plan(self) -> Plan:
        """Solver and levels of the keyframes, and of a first frame drawn from text."""
        own = find_preset(self.preset or RELEASED).plan
        return with_guidance(own if self.solver is None else find_plan(self.solver), self.guided)

    @property
    def interpolation_plan(self) -> Plan:
        """Solver and levels of the interpolation."""
        own = find_preset(self.preset or RELEASED).interpolation_plan
        return own if self.interpolation_solver is None else find_plan(self.interpolation_solver)


def resolve_settings(
    settings: Settings, defaults: Settings, multiple: int, trained_frames: int, release: Release
) -> Settings:
    """Fill in defaults where a value is None, and check every value.

    Args:
        settings: the caller's.
        defaults: the model's.
        multiple: width and height must be multiples of this many pixels.
        trained_frames: keyframes the network was trained on.
        release: what the model runs with.

    Raises:
        InputError: naming the setting, what it may be and what it was.
    """
    filled = {name: getattr(defaults, name) for name, value in vars(settings).items() if value is None}
    settings = replace(settings, **filled)
    if settings.fps not in LEVELS:
        raise InputError(f"expected fps low, medium or high, got {settings.fps!r}: choose one of them")
    check_sides(settings.width, settings.height, multiple)
    settings = _with_steps(settings, release)
    for steps in (settings.steps, settings.interpolation_steps):
        if not 1 <= steps <= 1000:
            raise InputError(f"expected 1 to 1000 steps, got {steps}: the releases use {V10.keyframe.steps}")
    if not 0 <= settings.seed < 2**63:
        raise InputError(f"expected a seed from 0 to 2**63 - 1, got {settings.seed}: choose one in this range")
    keyframes = trained_frames if settings.keyframes is None else settings.keyframes
    least = 1 if settings.fps == "low" else 2
    check_keyframes(release.family, keyframes)
    if keyframes < least:
        raise InputError(f"expected at least {least} keyframes for fps {settings.fps}, got {keyframes}: ask for more")
    for name in ("guidance_scale", "image_guidance", "interpolation_guidance"):
        value = getattr(settings, name)
        if value is not None and not math.isfinite(value):
            own = f"{V10.keyframe.guidance_scale:g}, {V11.image_guidance:g} and {V10.interpolation.guidance_scale:g}"
            raise InputError(f"expected a finite {name}, got {value}: the releases use {own}")
    scale = release.keyframe.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    return replace(settings, keyframes=keyframes, guidance_scale=scale)


def _with_steps(settings: Settings, release: Release) -> Settings:
    """Fill in both numbers of steps: the caller's, else the preset's, else the release's."""
    preset = find_preset(settings.preset or RELEASED)
    # Naming the plans here refuses a solver that does not exist before anything is computed.
    plans = settings.plan, settings.interpolation_plan
    given, inner = settings.steps, settings.interpolation_steps
    if inner is None and given is not None and release.shares_steps and plans[1].solver == RELEASED:
        inner = given
    return replace(
        settings,
        preset=settings.preset or RELEASED,
        narrow_decoder=preset.narrow_decoder if settings.narrow_decoder is None else settings.narrow_decoder,
        steps=next(n for n in (given, preset.steps, release.keyframe.steps) if n is not None),
        interpolation_steps=next(
            n for n in (inner, preset.interpolation_steps, release.interpolation.steps) if n is not None
        ),
    )


def describe_sampling(settings: Settings) -> str:
    """Return what a run of resolved settings takes, as words for the line after it."""

    def words(plan: Plan, steps: int) -> str:
        solver = "" if plan.solver == RELEASED else f" of {plan.solver}"
        guided = "" if plan.guided is None else f", guided from {plan.guided[1]:g} to {plan.guided[0]:g}"
        return f"{steps} steps{solver}{guided}"

    inner = words(settings.interpolation_plan, settings.interpolation_steps)
    per_pass = f" + {inner} per interpolation pass" if LEVELS[settings.fps][0] else ""
    return f"preset {settings.preset}: {words(settings.plan, settings.steps)}{per_pass}"


def sampling_warnings(settings: Settings, release: Release) -> list[str]:
    """Return what a caller should hear about resolved settings before the run; usually nothing."""
    stages = [(settings.plan, settings.steps, release.keyframe)]
    if LEVELS[settings.fps][0]:
        stages.append((settings.interpolation_plan, settings.interpolation_steps, release.interpolation))
    found = [few_steps(plan, steps, sampling.spacing == "trailing") for plan, steps, sampling in stages]
    return list(dict.fromkeys(text for text in found if text))
