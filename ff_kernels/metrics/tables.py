"""The one shape of a result, and results as a plain-text table and as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..errors import InputError
from .bootstrap import bootstrap_mean

# Ends the name of a measure that was taken of the reference clips alone.
REFERENCE = ", reference"


@dataclass(frozen=True)
class Measure:
    """One number, how sure it is, and its course over the frames.

    Attributes:
        name: such as "PSNR".
        unit: such as "dB", empty for a bare number.
        mean: the value; infinite for the PSNR of equal clips.
        low: lower end of the 95 % interval over items, None where there is none.
        high: upper end, or None.
        per_frame: the curve, mean over items per frame; empty where frames have no value of their own.
        items: clips or frames behind the mean.
        note: what the reader must know, such as values left out; may be empty.
        first: the frame, counted from 0, of the first value of ``per_frame``.
    """

    name: str
    unit: str
    mean: float
    low: float | None = None
    high: float | None = None
    per_frame: tuple[float, ...] = ()
    items: int = 1
    note: str = ""
    first: int = 0


def finite_mean(values: Tensor) -> tuple[float, int]:
    """Return the mean of the finite values ``[N]``, infinity if all are infinite, and how many were left out.

    Raises:
        InputError: if a value is NaN or there are none.
    """
    if not len(values) or values.isnan().any():
        raise InputError(f"expected values to average, got {'none' if not len(values) else 'NaN'}: measure again")
    finite = values[torch.isfinite(values)]
    return (finite.cpu().double().mean().item() if len(finite) else math.inf), len(values) - len(finite)


def measure_frames(name: str, unit: str, curve: Tensor, first: int = 0) -> Measure:
    """Return the measure of one clip from its curve ``[T]``, without an interval: its frames are no sample.

    Args:
        name: of the measure.
        unit: of the measure.
        curve: ``[T]``; infinite values, frames equal to their reference, are left out of the mean and counted.
        first: frame of the first value.

    Raises:
        InputError: if there are no values, or one is NaN.
    """
    mean, left_out = finite_mean(curve)
    note = f"without {left_out} of {len(curve)} frames that equal the reference" if left_out else ""
    values = tuple(curve.cpu().double().tolist())
    return Measure(name, unit, mean, per_frame=values, items=len(curve), note=note, first=first)


def measure_clips(name: str, unit: str, curves: Sequence[Tensor], seed: int = 0, *, first: int = 0) -> Measure:
    """Return the mean over clips of their means over frames, with the bootstrap interval over clips.

    Args:
        name: of the measure.
        unit: of the measure.
        curves: ``[T_i]`` per clip. Infinite values, frames equal to their reference, are left out of the means and
            counted in the note.
        seed: of the interval.
        first: frame of each curve's first value.

    Raises:
        InputError: if there are no clips, or a value is NaN.
    """
    if not curves:
        raise InputError(f"expected one or more clips for {name}, got none: measure a clip")
    pairs = [finite_mean(curve) for curve in curves]
    means = torch.tensor([mean for mean, _ in pairs], dtype=torch.float64)
    mean, left_out = finite_mean(means)
    finite = means[torch.isfinite(means)]
    low, high = bootstrap_mean(finite, seed=seed) if len(finite) > 1 else (None, None)
    notes = [] if len(finite) > 1 else ["no interval from fewer than two clips"]
    frames = sum(count for _, count in pairs)
    if frames:
        notes.append(f"without {frames} of {sum(map(len, curves))} frames that equal the reference")
    if left_out:
        notes.append(f"without {left_out} of {len(curves)} clips that equal the reference throughout")
    return Measure(name, unit, mean, low, high, _mean_curve(curves), len(curves), "; ".join(notes), first)


def _mean_curve(curves: Sequence[Tensor]) -> tuple[float, ...]:
    """Mean at each frame over the clips that have it, by the rule of ``finite_mean``."""
    longest = max(map(len, curves))
    return tuple(
        finite_mean(torch.stack([c[i] for c in curves if len(c) > i]).cpu().double())[0] for i in range(longest)
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if 0 < abs(value) < 0.1 or abs(value) >= 1e5 else f"{value:.4f}"


def text_table(measures: Sequence[Measure]) -> str:
    """Return one line per measure under a heading: value, 95 % interval, items, note."""
    width = max([len(measure.name) for measure in measures], default=0)
    lines = [f"{'measure':{max(width, 7)}} {'value':>12} {'unit':4} {'95 % from':>12} {'to':>12} {'items':>6}"]
    for m in measures:
        numbers = f"{_number(m.mean):>12} {m.unit:4} {_number(m.low):>12} {_number(m.high):>12} {m.items:6}"
        lines.append(f"{m.name:{max(width, 7)}} {numbers}  {m.note}".rstrip())
    return "\n".join(lines)


def frame_table(measures: Sequence[Measure]) -> str:
    """Return one clip as text: the means with what they leave out, then one line per frame.

    Args:
        measures: of one clip, from ``measure_frames``; a frame that a measure has no value of shows "-".
    """
    heads = [f"{m.name}, {m.unit}" if m.unit else m.name for m in measures]
    widths = [max(len(head), 12) for head in heads]
    last = max((m.first + len(m.per_frame) for m in measures), default=0)

    def line(label: str, cells: Sequence[str]) -> str:
        return f"{label:>5}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    lines = [line("frame", heads), line("mean", [_number(m.mean) for m in measures])]
    for frame in range(last):
        has_value = [m.first <= frame < m.first + len(m.per_frame) for m in measures]
        values = [m.per_frame[frame - m.first] if has else None for m, has in zip(measures, has_value, strict=True)]
        lines.append(line(str(frame), [_number(value) for value in values]))
    return "\n".join([*lines, *(f"{m.name}: {m.note}" for m in measures if m.note)])


def to_json(measures: Sequence[Measure], **more: object) -> str:
    """Return an object with the list ``measures`` and the fields of ``more``; infinity is the string "inf"."""
    return json.dumps({"measures": [_plain(asdict(m)) for m in measures], **more}, indent=2, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
