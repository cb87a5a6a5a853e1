"""Results as tables: ours beside the paper's numbers, mean and standard deviation over seeds."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..bench.sizes import decoder_parameters, keyframe_parameters
from ..demo.world.scenes import FULL_FRAMES, MEDIUM_FRAMES
from ..models.configs import TEMPORAL_VARIANTS
from . import decoders, gaps, variants

Rows = Mapping[str, Mapping[str, Mapping[str, float]]]
SPREAD = "mean (standard deviation) over seeds"
_ATTRIBUTES = ("color", "size", "shape", "background", "motion", "all")


def spread(rows: Rows, row: str, key: str) -> tuple[float, float | None] | None:
    """Return mean and sample standard deviation over the seeds of a row; None where nothing, or one seed, is known."""
    values = [numbers[key] for numbers in rows.get(row, {}).values() if key in numbers]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def cell(rows: Rows, row: str, key: str, digits: int, unit: float = 1.0) -> str:
    """Return "mean (deviation)" of a number, "-" where it was not measured."""
    found = spread(rows, row, key)
    if found is None:
        return "-"
    mean, deviation = found
    text = f"{mean / unit:.{digits}f}"
    return text if deviation is None else f"{text} ({deviation / unit:.{digits}f})"


def tables(results: Mapping[str, Any]) -> str:
    """Return every table that the results hold, with a heading each."""
    makers: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
        variants.GROUP: variant_table,
        gaps.GROUP: gap_table,
        decoders.GROUP: decoder_table,
    }
    parts = []
    for group, make in makers.items():
        if group in results:
            parts.append("\n".join([f"{group}: {SPREAD}", "", *make(results), ""]))
    return "\n".join(parts)


def variant_table(results: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of temporal variants."""
    rows: Rows = results[variants.GROUP]["rows"]
    names = [*TEMPORAL_VARIANTS, variants.SHIPPED, variants.TRUTH]
    head = ["", "10^9 parameters", "paper: IS / FVD / CLIPSIM", *_ATTRIBUTES[:-1], "all five", "warping error x 1000"]
    lines = []
    for name in names:
        if name not in rows:
            continue
        paper = " / ".join(f"{value:g}" for value in variants.PAPER[name]) if name in variants.PAPER else "-"
        size = f"{keyframe_parameters(name)[0] / 1e9:.2f}" if name in variants.PAPER else "-"
        shares = [cell(rows, name, key, 2) for key in _ATTRIBUTES]
        lines.append([name, size, paper, *shares, cell(rows, name, "warping", 2, 1e-3)])
    return _markdown(head, lines)


def gap_table(results: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of interpolations."""
    rows: Rows = results[gaps.GROUP]["rows"]
    costs, seconds = results.get("cost", {}), results.get("seconds", {})
    head = ["", "paper: IS / FVD"]
    for frames in (MEDIUM_FRAMES, FULL_FRAMES):
        head += [f"PSNR, {frames} frames", "SSIM", "MSE x 1000"]
    head += ["TFLOP per step, full size", "s for 65 frames, demo scale"]
    lines = []
    for name in (gaps.OURS, gaps.OURS_EQUAL_TIME, gaps.MASKED, gaps.BLENDING, gaps.SHIPPED):
        if name not in rows:
            continue
        paper = " / ".join(f"{value:g}" for value in gaps.PAPER[name]) if name in gaps.PAPER else "-"
        line = [name, paper]
        for frames in (MEDIUM_FRAMES, FULL_FRAMES):
            line += [cell(rows, name, f"PSNR {frames}", 2), cell(rows, name, f"SSIM {frames}", 3)]
            line.append(cell(rows, name, f"MSE {frames}", 2, 1e-3))
        line.append(f"{costs[name]['flops'] / 1e12:.1f}" if name in costs else "-")
        line.append(f"{seconds[name]:.1f}" if name in seconds else "-")
        lines.append(line)
    return _markdown(head, lines)


def decoder_table(results: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of decoders."""
    rows: Rows = results[decoders.GROUP]["rows"]
    head = ["temporal layers", "trained", "10^6 parameters", "paper: PSNR / SSIM / MSE / LPIPS", "PSNR", "SSIM"]
    head += ["MSE x 1000", "LPIPS"]
    lines = []
    for row in decoders.ROWS:
        if row.name not in rows:
            continue
        size = f"{decoder_parameters(row.config()) // 10**6}"
        paper = " / ".join(f"{value:g}" for value in row.paper[:4])
        ours = [cell(rows, row.name, "PSNR", 2), cell(rows, row.name, "SSIM", 4)]
        ours += [cell(rows, row.name, "MSE", 3, 1e-3), cell(rows, row.name, "LPIPS", 4)]
        lines.append([row.layers, row.trained, size, paper, *ours])
    return _markdown(head, lines)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines)]
