"""Widgets and words that several nodes share."""

import logging

from ..ff_kernels.errors import InputError
from ..ff_kernels.sampling.schedule import TRAIN_STEPS
from ..ff_kernels.stages.presets import (
    PLANS,
    PRESETS,
    RELEASED,
    Plan,
    few_steps,
    find_plan,
    find_preset,
)
from ..ff_kernels.stages.releases import V10, V11, Release
from ._api import io
from ._compat import DTYPES

ALIASES = ["kandinsky", "kandinsky video", "movq", "text to video", "frame interpolation"]
SEED_MAX = 0xFFFFFFFFFFFFFFFF
STEPS_MAX = TRAIN_STEPS
# The preset that is none: steps and solver as the node's own widgets say.
CUSTOM = "custom"


def dtype_input(default: str) -> io.Combo.Input:
    """Return the widget for the dtype of weights; ``default`` says what its first entry does."""
    return io.Combo.Input(
        "weight_dtype",
        options=list(DTYPES),
        default="default",
        optional=True,
        advanced=True,
        tooltip=f"Type of the weights in memory. default: {default}. float16 and bfloat16 take 2 bytes per weight, "
        "float32 takes 4.",
    )


def seed_input() -> io.Int.Input:
    """Return the seed widget."""
    return io.Int.Input(
        "seed",
        default=0,
        optional=True,
        min=0,
        max=SEED_MAX,
        control_after_generate=True,
        tooltip="Start of the random numbers; the same seed gives the same video, here and on the command line. "
        "Clip i of a batch is the clip of seed + i.",
    )


def steps_input(tooltip: str = f"Sampling steps, 1 to 1000; the releases use {V10.keyframe.steps}.") -> io.Int.Input:
    """Return the widget for sampling steps."""
    return io.Int.Input("steps", default=V10.keyframe.steps, optional=True, min=1, max=STEPS_MAX, tooltip=tooltip)


def preset_input() -> io.Combo.Input:
    """Return the widget for a preset; workflows saved before it was there run without."""
    return io.Combo.Input(
        "preset",
        options=[CUSTOM, *PRESETS],
        default=CUSTOM,
        optional=True,
        tooltip="custom: steps and solver as set here. released, balanced and fast bring their own: as the release "
        "samples, or in far fewer steps.",
    )


def solver_input() -> io.Combo.Input:
    """Return the widget for a solver."""
    return io.Combo.Input(
        "solver",
        options=list(PLANS),
        default=RELEASED,
        optional=True,
        tooltip="released: the release's own formula, which falls apart below 20 steps. The others hold with few: "
        "dpmpp_2m keeps most variety, ddpm is steadiest.",
    )


def guidance_input(tooltip: str) -> io.Float.Input:
    """Return the widget for the text guidance of keyframes."""
    own = V10.keyframe.guidance_scale
    return io.Float.Input("guidance_scale", default=own, optional=True, min=0.0, max=50.0, step=0.1, tooltip=tooltip)


def image_guidance_input(what: str) -> io.Float.Input:
    """Return the widget for the weight of the first frame."""
    own, tooltip = V11.image_guidance, f"{what}; the release uses {V11.image_guidance:g}."
    return io.Float.Input("image_guidance", default=own, optional=True, min=0.0, max=50.0, step=0.1, tooltip=tooltip)


def fps_input(tooltip: str) -> io.Float.Input:
    """Return the rate of the frames that go in; those of the releases' keyframes is the default."""
    return io.Float.Input("fps", default=2.0, optional=True, min=0.01, max=240.0, step=0.01, tooltip=tooltip)


def check_steps(steps: int) -> None:
    """Refuse a number of steps that no schedule has; core does not check what comes through a link.

    Raises:
        InputError: if it is outside 1 .. 1000.
    """
    if not 1 <= steps <= STEPS_MAX:
        raise InputError(
            f"steps expected 1 to {STEPS_MAX} sampling steps, got {steps}: the releases use {V10.keyframe.steps}"
        )


def decodes_narrow(preset: str) -> bool:
    """Return whether what a preset made may be decoded in 16 bit; of custom steps it may not."""
    return preset != CUSTOM and find_preset(preset).narrow_decoder


def chosen_steps(preset: str, solver: str, steps: int, release: Release, stage: str) -> tuple[int, Plan]:
    """Return steps and plan of a stage, "keyframe" or "interpolation", as the widgets say.

    Raises:
        InputError: if there is no such preset or solver, or the steps are out of range.
    """
    if preset == CUSTOM:
        check_steps(steps)
        plan = find_plan(solver)
    else:
        known, sampling = find_preset(preset), getattr(release, stage)
        steps = (known.steps if stage == "keyframe" else known.interpolation_steps) or sampling.steps
        plan = known.plan if stage == "keyframe" else known.interpolation_plan
    warning = few_steps(plan, steps, getattr(release, stage).spacing == "trailing")
    if warning is not None:
        logging.warning("FusionFrames: %s", warning)
    return steps, plan
