"""What a clip of release 1.0 costs at the released size by count: the release's formulation, ours, ours by presets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..sampling.gaps import frames_after
from ..stages.presets import PRESETS, RELEASED, Preset
from ..stages.releases import V10
from .counting import PEAKS, record_ours, record_reference, roofline_seconds
from .recorder import Recording
from .workloads import WORKLOADS

# Reachable FLOP/s in float32 of devices by a part of their name, as in ``PEAKS``: of convolutions, whose inputs torch
# lets the vendor's library round to TF32 unless told otherwise, and of the rest, which it does not.
FLOAT32_PEAKS = {"H200": (395e12, 54e12), "H100": (395e12, 54e12), "4090": (82e12, 82e12)}


@dataclass(frozen=True)
class ClipCost:
    """Seconds that a GPU cannot go below for a clip of release 1.0: one interpolation pass, 512 x 512.

    Attributes:
        name: formulation and preset.
        keyframes: all steps of the keyframes, in 16 bit.
        interpolation: all steps of the pass, in 16 bit.
        decoding: all frames, and what it takes to choose their dtype.
        decoded_in: dtype of the decoder, in words.
    """

    name: str
    keyframes: float
    interpolation: float
    decoding: float
    decoded_in: str

    @property
    def seconds(self) -> float:
        """The whole clip; encoding the prompt is left out."""
        return self.keyframes + self.interpolation + self.decoding


def float32_seconds(recording: Recording, device_name: str) -> float:
    """Return the time below which a device of ``FLOAT32_PEAKS`` cannot run what was recorded in float32."""
    part = next(part for part in FLOAT32_PEAKS if part in device_name)
    convolutions, rest = FLOAT32_PEAKS[part]
    is_convolution = [("conv" in cost.name, cost) for cost in recording.costs]
    return sum(
        Recording([cost]).seconds(convolutions if is_conv else rest, PEAKS[part][1]) for is_conv, cost in is_convolution
    )


def clip_costs(device_name: str = "H200") -> list[ClipCost]:
    """Return the counted cost of a clip in the release's formulation and in ours with every preset.

    The release decodes under autocast, in 16 bit. Ours decodes in float32, and in 16 bit by the presets that do: those
    decode a first frame in both besides, to see whether 16 bit is near enough, and find that it is.
    """
    keyframes, interpolation, decoder = (WORKLOADS[f"{name}-512"] for name in ("keyframes", "interpolation", "decode"))
    release, steps = (
        [roofline_seconds(count(workload), device_name) for workload in (keyframes, interpolation, decoder)]
        for count in (record_reference, record_ours)
    )
    frames = frames_after(V10.keyframes, 1)
    # Large frames are decoded one by one, so that five cost five times one.
    narrow = steps[2] / decoder.frames
    wide = float32_seconds(record_ours(replace(decoder, is_full_size=False)), device_name) / decoder.frames

    def ours(name: str, preset: Preset) -> ClipCost:
        decoding = narrow * (frames + 1) + wide if preset.narrow_decoder else wide * frames
        words = "16 bit" if preset.narrow_decoder else "float32"
        return _clip(f"ours, {name}", steps, preset, decoding, words)

    decoding = release[2] / decoder.frames * frames
    baseline = _clip("release's formulation", release, PRESETS[RELEASED], decoding, "16 bit")
    return [baseline, *(ours(name, preset) for name, preset in PRESETS.items())]


def _clip(name: str, step: Sequence[float], preset: Preset, decoding: float, decoded_in: str) -> ClipCost:
    outer = preset.steps or V10.keyframe.steps
    inner = preset.interpolation_steps or V10.interpolation.steps
    return ClipCost(name, step[0] * outer, step[1] * inner, decoding, decoded_in)


def clip_table(costs: Sequence[ClipCost]) -> list[str]:
    """Return the lines of a table in Markdown: seconds, and how many times faster than the first row."""
    lines = ["| | keyframes | interpolation | decoding | decoded in | clip | ratio |", "|---|---|---|---|---|---|---|"]
    for cost in costs:
        cells = " | ".join(f"{seconds:.2f}" for seconds in (cost.keyframes, cost.interpolation, cost.decoding))
        ratio = costs[0].seconds / cost.seconds
        lines.append(f"| {cost.name} | {cells} | {cost.decoded_in} | {cost.seconds:.2f} | {ratio:.1f} |")
    return lines
