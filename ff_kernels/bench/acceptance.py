"""One command for whoever has a card: does everything run on it as it should, how fast, and in what memory.

Kernels against their formulas, then of both releases' networks and of the text encoder: a step, a decoded clip and an
encoded prompt against the release's formulation, recorded steps against launched ones, weights that pass through and
weights in 8 bit against resident ones. Weights are random and made on the device, so nothing has to be downloaded.
"""

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn

from ..runtime.devices import empty_cache, name_of
from ..runtime.plan import size_of
from .kernel_checks import kernel_lines
from .lines import FAILED, NOT_HERE, PASSED, Line, NotHereError, guarded, of_error
from .placed_lines import IN_PIECES, pieces_line, placed_lines, ways_of
from .room import both_sides, require_dtype, require_room, resident
from .runner import REPEATS, measure, versions
from .workloads import WORKLOADS, Workload, make_network, make_ready

_STAGES = ("keyframes", "interpolation", "decode", "keyframes-1.1", "interpolation-1.1", "decode-1.1")
CARD, PROCESSOR = (
    (*(f"{stage}-512" for stage in _STAGES), "text-ul2"),
    (*(f"{stage}-small" for stage in _STAGES), "text-small"),
)
RELEASE = "against the release's formulation"
# Below this ratio of times a full-size line fails: both sides of the text encoder read the same weights once, which is
# all of the time they take.
LEAST_RATIO, LEAST_TEXT_RATIO = 1.0, 0.8


def told(device: torch.device, seconds: float) -> dict[str, Any]:
    """Return what a table of lines is worth nothing without."""
    return {"device": name_of(device), "versions": versions(), "seconds": seconds}


def acceptance_lines(
    device: torch.device, *, vram: int | None = None, names: tuple[str, ...] | None = None, repeats: int = REPEATS
) -> Iterator[Line]:  # fmt: skip
    """Check everything and yield a line each.

    Args:
        device: a card, or the processor, which gets small sizes.
        vram: bytes that a step with streamed weights may fill; default: room for half of the weights.
        names: workloads of steps, decoding and text; default: those of the device.
        repeats: calls behind each time.
    """
    has_card = device.type != "cpu"
    yield from kernel_lines(device, is_full_size=has_card)
    for name in names or (CARD if has_card else PROCESSOR):
        yield from _lines_of(WORKLOADS[name], device, vram, repeats)
        empty_cache(device)


def _lines_of(workload: Workload, device: torch.device, vram: int | None, repeats: int) -> Iterator[Line]:
    release = f"{workload.name}: {RELEASE}"
    try:
        require_dtype(workload, device)
    except NotHereError as error:
        yield from [
            of_error(check, error) for check in (release, *(f"{workload.name}: {w}" for w in ways_of(workload)))
        ]
        return

    # Folding is done on the processor and takes longer than all steps together: once for all lines.
    @cache
    @torch.inference_mode()
    def made() -> nn.Module:
        if workload.stage != "decode":
            require_room(lambda: resident(workload, device), device, "the resident weights")
        return make_ready(make_network(workload, device))

    line = guarded(release, lambda: _step(release, workload, made, device, repeats))
    yield line
    empty_cache(device)
    if workload.stage == "text" and line.verdict == NOT_HERE:
        made.cache_clear()
        check = f"{workload.name}: {IN_PIECES}"
        yield guarded(check, lambda: pieces_line(workload, device, vram, repeats), is_planned=True)
    elif workload.stage != "decode":
        yield from placed_lines(workload, made, device, vram, repeats)


def _step(check: str, workload: Workload, made: Callable[[], nn.Module], device: torch.device, repeats: int) -> Line:
    require_room(lambda: both_sides(workload, device), device, "this and the release's formulation together")
    result = measure(workload, repeats, ours=made())
    least = LEAST_TEXT_RATIO if workload.stage == "text" else LEAST_RATIO
    is_slower = workload.is_full_size and result.ratio < least
    peaks = [
        None if peak is None else size_of(int(peak * 1e6)) for peak in (result.ours_peak_mb, result.reference_peak_mb)
    ]
    measured = (
        f"{result.ours_seconds * 1e3:.1f} ms, release {result.reference_seconds * 1e3:.1f} ms, "
        f"ratio {result.ratio:.2f}; beside weights "
        f"{peaks[0] or 'unknown'}, release {peaks[1] or 'unknown'}; outputs differ by {result.difference:.1e}"
    )
    if result.roofline_share is not None:
        measured += f"; {result.roofline_share:.0%} of the roofline, release {result.reference_roofline_share:.0%}"
    return Line(check, FAILED if is_slower else PASSED, measured, vars(result))


def timed_lines(lines: Iterator[Line], show: Callable[[str], None]) -> tuple[list[Line], float]:
    """Collect lines, showing each as it comes; return them with the seconds that they took."""
    start, found = time.perf_counter(), []
    for line in lines:
        show(f"{line.verdict:8} {line.check}: {line.measured}")
        found.append(line)
    return found, time.perf_counter() - start
