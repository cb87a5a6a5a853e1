"""Results as tables: ours beside the paper's numbers, mean and standard deviation over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..bench.sizes import decoder_parameters, keyframe_parameters
from ..demo.world.scenes import FULL_FRAMES, MEDIUM_FRAMES
from ..models.configs import TEMPORAL_VARIANTS
from . import decoders, gaps, variants

# Row to seed to record.
Records = Mapping[str, Mapping[str, Mapping[str, Any]]]
_ATTRIBUTES = ("color", "size", "shape", "background", "motion", "all")


def values_of(records: Records, row: str, key: str) -> list[float]:
    """Return a number under every seed that has it."""
    return [r["numbers"][key] for r in records.get(row, {}).values() if key in r["numbers"]]


def spread(values: Sequence[float]) -> tuple[float, float | None] | None:
    """Return mean and sample standard deviation; None where nothing, or one value, is known."""
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def as_cell(values: Sequence[float], digits: int, unit: float = 1.0) -> str:
    """Return "mean (deviation)" of values, "-" where there are none."""
    found = spread(values)
    if found is None:
        return "-"
    mean, deviation = found
    text = f"{mean / unit:.{digits}f}"
    return text if deviation is None else f"{text} ({deviation / unit:.{digits}f})"


def cell(records: Records, row: str, key: str, digits: int, unit: float = 1.0) -> str:
    """Return ``as_cell`` of a number of a row."""
    return as_cell(values_of(records, row, key), digits, unit)


def training_minutes(records: Records, row: str) -> str:
    """Return the minutes of one core that a row trained for."""
    found = records.get(row, {}).values()
    return as_cell(
        [r["core_seconds_per_step"] * r["key"]["budget"]["train"]["steps"] / 60 for r in found if "budget" in r["key"]],
        1,
    )


def variant_table(records: Records) -> list[str]:
    """Return the lines of the table of temporal variants."""
    names = [*TEMPORAL_VARIANTS, variants.SHIPPED, variants.TRUTH]
    head = ["", "10^9 parameters", "paper: IS / FVD / CLIPSIM", *_ATTRIBUTES[:-1], "all five", "warping error x 1000"]
    head.append("min of training")
    lines = []
    for name in names:
        if name not in records:
            continue
        paper = " / ".join(f"{value:g}" for value in variants.PAPER[name]) if name in variants.PAPER else "-"
        size = f"{keyframe_parameters(name)[0] / 1e9:.2f}" if name in variants.PAPER else "-"
        shares = [cell(records, name, key, 2) for key in _ATTRIBUTES]
        warping = cell(records, name, "warping", 2, 1e-3)
        lines.append([name, size, paper, *shares, warping, training_minutes(records, name)])
    return _markdown(head, lines)


def gap_table(records: Records) -> list[str]:
    """Return the lines of the table of interpolations."""
    costs = gaps.count_costs()
    head = ["", "paper: IS / FVD"]
    for frames in (MEDIUM_FRAMES, FULL_FRAMES):
        head += [f"PSNR, {frames} frames", "SSIM", "warping error x 1000"]
    head += [f"s for {FULL_FRAMES} frames", "TFLOP per step, full size", "min of training"]
    lines = []
    for name in (gaps.OURS, gaps.OURS_EQUAL_TIME, gaps.MASKED, gaps.BLENDING, gaps.SHIPPED, gaps.TRUTH):
        if name not in records:
            continue
        paper = " / ".join(f"{value:g}" for value in gaps.PAPER[name]) if name in gaps.PAPER else "-"
        line = [name, paper]
        for frames in (MEDIUM_FRAMES, FULL_FRAMES):
            line += [cell(records, name, f"PSNR {frames}", 2), cell(records, name, f"SSIM {frames}", 3)]
            line.append(cell(records, name, f"warping {frames}", 2, 1e-3))
        line.append(cell(records, name, f"seconds {FULL_FRAMES}", 1))
        line.append(f"{costs[name].flops / 1e12:.1f}" if name in costs else "-")
        lines.append([*line, training_minutes(records, name)])
    return _markdown(head, lines)


def decoder_table(records: Records) -> list[str]:
    """Return the lines of the table of decoders."""
    head = ["temporal layers", "trained", "10^6 parameters", "paper: PSNR / SSIM / MSE / LPIPS", "PSNR", "SSIM"]
    head += ["MSE x 1000", "flicker x 1000", "LPIPS", "min of training"]
    lines = []
    for row in decoders.ROWS:
        if row.name not in records:
            continue
        size = f"{decoder_parameters(row.config()) // 10**6}"
        paper = " / ".join(f"{value:g}" for value in row.paper[:4])
        ours = [cell(records, row.name, "PSNR", 2), cell(records, row.name, "SSIM", 4)]
        ours += [cell(records, row.name, "MSE", 3, 1e-3), cell(records, row.name, "flicker", 2, 1e-3)]
        ours += [cell(records, row.name, "LPIPS", 4), training_minutes(records, row.name)]
        lines.append([row.layers, row.trained, size, paper, *ours])
    if decoders.TRUTH in records:
        flicker = cell(records, decoders.TRUTH, "flicker", 2, 1e-3)
        lines.append([decoders.TRUTH, *["-"] * 6, flicker, "-", "-"])
    return _markdown(head, lines)


MAKERS = {variants.GROUP: variant_table, gaps.GROUP: gap_table, decoders.GROUP: decoder_table}


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines)]
