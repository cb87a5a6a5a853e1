"""Fewer steps than the releases take, as data: which solver through which levels, and the presets made of them.

Nothing here needs torch, so that a help text is printed at once.
"""

from dataclasses import dataclass, replace

from ..errors import InputError

# Not a solver but the release's own formula, whose told times part from its levels below this many steps.
RELEASED = "released"
LEAST_RELEASED_STEPS = 20


@dataclass(frozen=True)
class Plan:
    """How a stage goes from noise to latents.

    Attributes:
        solver: "released", or a key of ``sampling.solvers.SOLVERS``.
        spacing: of the levels, see ``sampling.levels.choose_timesteps``; the release's own is not asked.
        start: share of the way to noise at which the run starts, 0..1.
        eta: of DDIM: 0 draws no noise, 1 is DDPM; None is 0.
        guided: noise / signal ratios between which the guidance acts; the steps outside run the first branch alone.
    """

    solver: str = RELEASED
    spacing: str = "even"
    start: float = 1.0
    eta: float | None = None
    guided: tuple[float, float] | None = None


AS_RELEASED = Plan()
# The levels that suit each solver. At the very end the first estimate is made of noise alone and so is the mean of all
# clips; at 0.96, where the noise is 16 times the signal, it decides less, and clips differ as they should.
PLANS = {
    RELEASED: AS_RELEASED,
    "ddpm": Plan("ddpm"),
    "ddim": Plan("ddim"),
    "dpmpp_2m": Plan("dpmpp_2m", "even", 0.96),
    "dpmpp_2m_sde": Plan("dpmpp_2m_sde", "even", 0.96),
}


@dataclass(frozen=True)
class Preset:
    """Steps and plans of both stages; None takes the release's steps.

    Attributes:
        steps: of the keyframes, and of a first frame drawn from text.
        plan: of the same.
        interpolation_steps: of each interpolation pass.
        interpolation_plan: of the same.
        narrow_decoder: decode in 16 bit where that is faster and within what files round away.
    """

    steps: int | None = None
    plan: Plan = AS_RELEASED
    interpolation_steps: int | None = None
    interpolation_plan: Plan = AS_RELEASED
    narrow_decoder: bool = False


# Six even steps lose a tenth of the variety; most of six where little noise is left lose none, and a little colour.
# Eight even steps keep all of it from 0.94 on, and lose some from 0.96 on. Three steps of the interpolation are less
# steady than four and steadier than the release's fifty.
# What each costs and keeps is measured by ``fusionframes bench --quality``: bench/QUALITY.md.
PRESETS = {
    RELEASED: Preset(),
    "balanced": Preset(8, Plan("dpmpp_2m", "even", 0.94), 3, PLANS["ddpm"], True),
    "fast": Preset(6, Plan("dpmpp_2m", "karras", 0.98), 3, PLANS["ddpm"], True),
}


def find_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        InputError: if there is none of this name.
    """
    if name not in PRESETS:
        raise InputError(f"expected a preset, got {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def find_plan(solver: str, guided: tuple[float, float] | None = None) -> Plan:
    """Return the plan of a solver by name, guided between two noise / signal ratios if they are given.

    Raises:
        InputError: if there is no such solver or the ratios do not rise from 0 on.
    """
    if solver not in PLANS:
        raise InputError(f"expected a solver, got {solver!r}: choose from {', '.join(PLANS)}")
    return with_guidance(PLANS[solver], guided)


def with_guidance(plan: Plan, guided: tuple[float, float] | None) -> Plan:
    """Return a plan whose guidance acts between two noise / signal ratios; None leaves it as it is.

    Raises:
        InputError: if the ratios do not rise from 0 on.
    """
    if guided is None:
        return plan
    low, high = guided
    if not 0 <= low < high:
        raise InputError(
            f"expected guidance between two rising ratios of noise to signal, got {low:g} and {high:g}: try 0.3 and 5"
        )
    return replace(plan, guided=(low, high))


def few_steps(plan: Plan, steps: int, is_trailing: bool) -> str | None:
    """Return the warning that a run deserves, or None.

    Args:
        plan: of the run.
        steps: of the run.
        is_trailing: the release spreads this stage's steps from the noisiest level on and tells them as they are.
    """
    if plan.solver != RELEASED or is_trailing or steps >= LEAST_RELEASED_STEPS:
        return None
    return (
        f"the release's formula falls apart with {steps} steps, below {LEAST_RELEASED_STEPS}: it adds the noise of one "
        "step count and tells the network the times of another; take the preset balanced or the solver dpmpp_2m"
    )
