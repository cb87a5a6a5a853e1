"""How long ``bench --acceptance`` should take on a card of today, from counts: no such run has been timed yet."""

from collections.abc import Sequence
from dataclasses import dataclass

from .acceptance import CARD
from .counting import record_ours, record_reference
from .placed_lines import EIGHT_BIT, RECORDED, ways_of
from .room import weights_of
from .runner import REPEATS
from .workloads import WORKLOADS, Workload

# A card of the middle: FLOP/s in 16 bit, bytes/s of its own memory, and the share of both that is really reached.
CARD_PEAKS, REACHED = (100e12, 2e12), 0.25
# Bytes/s between the card and ordinary main memory, and between it and pinned memory.
PAGED, PINNED = 4e9, 20e9
# Seconds that the processor takes, measured on one thread: folding and counting one network, and kernels' formulas in
# float64; kernels of three dtypes are compiled at a few seconds each, which is assumed.
FOLDING = {
    "keyframes-512": 9, "interpolation-512": 41, "decode-512": 1, "keyframes-1.1-512": 9, "interpolation-1.1-512": 8,
    "decode-1.1-512": 1,
}  # fmt: skip
COUNTING, KERNELS = 6, 6 + 24 * 3
# Calls of a function before it is measured, and those that recording it takes.
_WARM, _RECORDING = 2, 4


@dataclass(frozen=True)
class Estimate:
    """Seconds of the lines of one workload.

    Attributes:
        workload: its name, or "kernels".
        computing: on the card.
        copying: of weights between the card and main memory.
        processor: of the processor: folding, counting, compiling.
    """

    workload: str
    computing: float
    copying: float
    processor: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.computing + self.copying + self.processor


def acceptance_estimates() -> list[Estimate]:
    """Return what every workload of a card takes, and the kernels."""
    return [Estimate("kernels", 0.0, 0.0, KERNELS), *(_estimate(WORKLOADS[name]) for name in CARD)]


def _estimate(workload: Workload) -> Estimate:
    ways = ways_of(workload)
    step, release = (count(workload).seconds(*CARD_PEAKS) for count in (record_ours, record_reference))
    recordings = _RECORDING * workload.has_steps
    calls = _WARM + recordings + REPEATS + (RECORDED in ways) * (_RECORDING + 1)
    placed = [way for way in ways if way != RECORDED]
    calls += (len(placed) + 1 if placed else 0) * (1 + REPEATS)
    computing = (calls * step + (_WARM + REPEATS + bool(recordings)) * release) / REACHED
    # To main memory and, what stays, back again; half of the weights is pinned and passes through in every call.
    weights, passing = weights_of(workload), weights_of(workload) / 2
    copying = len(placed) * 2 * weights / PAGED + bool(placed) * (1 + REPEATS) * passing / PINNED
    folds = 1 + (EIGHT_BIT in ways)
    return Estimate(workload.name, computing, copying, folds * FOLDING.get(workload.name, 0) + COUNTING)


def table(estimates: Sequence[Estimate]) -> list[str]:
    """Return the lines of a table in Markdown, the last of them the sum."""
    lines = ["| lines of | card, s | copies, s | processor, s | all, s |", "|---|---|---|---|---|"]
    parts = [(e.workload, e.computing, e.copying, e.processor, e.seconds) for e in estimates]
    sums = [sum(column) for column in list(zip(*parts, strict=True))[1:]] if parts else []
    return [
        *lines,
        *(
            f"| {name} | {' | '.join(f'{s:.0f}' for s in seconds)} |"
            for name, *seconds in [*parts, ("together", *sums)]
        ),
    ]
