"""What a table says, in one sentence that follows from its numbers: a difference inside of the spread is none."""

from collections.abc import Mapping, Sequence

from ..demo.world.scenes import FULL_FRAMES, MEDIUM_FRAMES
from ..models.configs import MIXED_VARIANT, TEMPORAL_VARIANTS
from . import decoders, gaps, variants
from .tables import Records, as_cell, spread, values_of

# What the budgets are long enough for, if they are.
MOTION_GOAL, BLENDING_GOAL_DB, DECODER_GOAL_DB = 0.9, 3.0, 0.3
CHOSEN = "Conv1dAttn1dBlocks"
BEST_DECODER = "conv3d-attn"


def differs(first: Sequence[float], second: Sequence[float]) -> int:
    """Return 1 where the first values lie above the second by more than both deviations, -1 below, 0 for neither.

    One value has no known deviation and differs from nothing, unless the other is certain: where nothing is random
    there is but one value of it, whose deviation is zero.
    """
    (a, wide_a), (b, wide_b) = spread(first), spread(second)
    if wide_a is None or wide_b is None:
        return 0
    return (a - b > wide_a + wide_b) - (b - a > wide_a + wide_b)


def beyond(values: Sequence[float], fixed: float) -> int:
    """Return as ``differs`` does, against a number that nothing random went into."""
    mean, deviation = spread(values)
    if deviation is None:
        return 0
    return (mean - fixed > deviation) - (fixed - mean > deviation)


def _names(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def variants_verdict(records: Records) -> str:
    """Say whether blocks lie above layers in motion, as in the paper."""
    motion = {name: values_of(records, name, "motion") for name in TEMPORAL_VARIANTS}
    layers = motion.pop(MIXED_VARIANT)
    better = [name for name, values in motion.items() if differs(values, layers) > 0]
    worse = [name for name, values in motion.items() if differs(values, layers) < 0]
    reached = spread(motion[CHOSEN])[0]
    level = f"{CHOSEN} has {as_cell(motion[CHOSEN], 2)} of motions right"
    level += "" if reached >= MOTION_GOAL else f", below the {MOTION_GOAL} that this budget was meant for"
    if len(layers) < 2:
        return f"{level}, {MIXED_VARIANT} {as_cell(layers, 2)}; one seed has no spread, so nothing ranks yet."
    if better and not worse:
        return (
            f"{level}, {MIXED_VARIANT} {as_cell(layers, 2)}: {_names(better)} above it by more than the spread; "
            f"the paper, which has layers last, {'agrees' if len(better) == len(motion) else 'agrees in part'}."
        )
    if worse:
        return f"{level}; {MIXED_VARIANT} is above {_names(worse)} by more than the spread: the paper disagrees."
    return f"{level}, and no variant of blocks differs from {MIXED_VARIANT} by more than the spread: no ranking."


def gaps_verdict(records: Records) -> str:
    """Say whether ours is ahead of Masked Frame Interpolation for equal time and equal steps, as in the paper."""
    key = f"PSNR {FULL_FRAMES}"
    psnr = {name: values_of(records, name, key) for name in (gaps.OURS, gaps.OURS_EQUAL_TIME, gaps.MASKED)}
    masked = psnr[gaps.MASKED]
    parts, signs = [], []
    for words, name in (("equal time", gaps.OURS_EQUAL_TIME), ("equal steps", gaps.OURS)):
        sign = differs(psnr[name], masked)
        signs.append(sign)
        ahead = {1: "ours is ahead", -1: "the baseline is ahead", 0: "neither is ahead by more than the spread"}[sign]
        if len(masked) < 2:
            ahead = "one seed cannot say who is ahead"
        parts.append(f"for {words} {ahead} ({as_cell(psnr[name], 2)} against {as_cell(masked, 2)} dB)")
    better = max(psnr, key=lambda name: spread(psnr[name])[0])
    gain, short_gain = (
        spread(values_of(records, better, f"PSNR {frames}"))[0] - values_of(records, gaps.BLENDING, f"PSNR {frames}")[0]
        for frames in (FULL_FRAMES, MEDIUM_FRAMES)
    )
    goal = "" if gain >= BLENDING_GOAL_DB else f", short of the {BLENDING_GOAL_DB:g} dB that this budget was meant for"
    paper = {2: "agrees", -2: "disagrees"}.get(
        sum(signs), "agrees for equal time" if signs[0] > 0 else "is not decided"
    )
    return (
        f"At {FULL_FRAMES} frames, {parts[0]}, and {parts[1]}; the better one is {gain:+.1f} dB from linear blending"
        f"{goal} ({short_gain:+.1f} dB at {MEDIUM_FRAMES} frames); the paper, which has ours ahead, {paper}."
    )


def decoders_verdict(records: Records) -> str:
    """Say which decoders are above the image decoder, if the paper's best is the best, and if training whole pays."""
    image = values_of(records, decoders.ROWS[0].name, "PSNR")[0]
    psnr = {row.name: values_of(records, row.name, "PSNR") for row in decoders.ROWS[1:]}
    means = {name: spread(values)[0] for name, values in psnr.items()}
    best = max(means, key=means.get)
    gain = f"{means[best] - image:+.2f} dB"
    goal = "" if means[best] - image >= DECODER_GOAL_DB else f", short of the {DECODER_GOAL_DB:g} dB that were meant"
    text = f"The best, {best}, is {gain} from the image decoder{goal}"
    if min(len(values) for values in psnr.values()) < 2:
        return f"{text}; one seed has no spread, so nothing ranks yet."
    above = [name for name, values in psnr.items() if beyond(values, image) > 0]
    level = [name for name, values in psnr.items() if differs(psnr[best], values) == 0 and name != best]
    text += f"; {len(above)} of {len(psnr)} rows are above it by more than their spread"
    text += f", and {_names(level)} {'is' if len(level) == 1 else 'are'} no different from the best" if level else ""
    if best == BEST_DECODER and not level:
        paper = "whose best it is, agrees"
    else:
        is_open = best == BEST_DECODER or BEST_DECODER in level
        paper = f"whose best is {BEST_DECODER}, {'is not contradicted' if is_open else 'disagrees'}"
    return f"{text}: the paper, {paper}; {_whole_verdict(psnr)}."


def _whole_verdict(psnr: Mapping[str, Sequence[float]]) -> str:
    """Say how many decoders are better trained whole than in their temporal layers alone."""
    wholes = {row.layers: row.name for row in decoders.ROWS if row.trained == "whole"}
    pairs = [(wholes[row.layers], row.name) for row in decoders.ROWS if row.trained == "temporal"]
    better = sum(differs(psnr[whole], psnr[part]) > 0 for whole, part in pairs)
    return (
        f"of the rows trained in both ways, {better} of {len(pairs)} are better whole than in their temporal layers "
        "alone, as all are in the paper"
    )


def presets_verdict(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Say what the presets of few steps cost and save beside the released 50 + 50."""
    released = rows["released"]
    parts = []
    for name in ("balanced", "fast"):
        row = rows[name]
        apart = row["spread_px"] - released["spread_px"]
        error = row["spread_error_px"] + released["spread_error_px"]
        change = "no different" if abs(apart) <= error else f"{apart:+.2f} px"
        parts.append(
            f"{name} takes {row['seconds']:.2f} of {released['seconds']:.2f} s with {row['all_right']:.3f} of captions "
            f"right and a spread of places that is {change}"
        )
    return "; ".join(parts)[:1].upper() + "; ".join(parts)[1:] + ". The paper has no such comparison."


VERDICTS = {variants.GROUP: variants_verdict, gaps.GROUP: gaps_verdict, decoders.GROUP: decoders_verdict}
