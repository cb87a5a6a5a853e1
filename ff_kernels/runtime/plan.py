"""What of a network stays on a device and what passes through it, for a budget of memory; pure arithmetic.

Sizes are bytes. A step computes for longer than its weights take to arrive, unless many of them come in one go: so
blocks that pass through are spread evenly between those that stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import DeviceError
from .budget import with_reserve

# Blocks smaller than this share of the largest one always stay: together they are little, and each costs a turn.
SMALL_SHARE = 0.15
SLOTS = 2
Waiting = Literal["device", "memory", "file"]


def size_of(count: int) -> str:
    """Return bytes as words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def least_of(peak: int, budget: "Budget") -> str:
    """Return the smallest budget for a plan in words, rounded up, so that asking for what is said is enough."""
    least = with_reserve(peak) if budget.reserve else peak
    digit = 10**7 if least >= 1e8 else 10**4
    return size_of(-(-least // digit) * digit)


@dataclass(frozen=True)
class Blocks:
    """The weights of a network, as a plan sees them.

    Attributes:
        sizes: bytes of every block that a step runs, in their order.
        rest: bytes of what a step needs besides: first and last layers.
        visited: bytes of the largest piece that ``prepare`` reads and a step does not.
        prepared: bytes of all such pieces.
        packed: bytes of every block in 8 bit, 0 for one that is not; empty where nothing is.
    """

    sizes: tuple[int, ...]
    rest: int
    visited: int = 0
    prepared: int = 0
    packed: tuple[int, ...] = ()

    @property
    def step(self) -> int:
        """Bytes of all that a step reads."""
        return sum(self.sizes) + self.rest

    @property
    def kept(self) -> tuple[int, ...]:
        """Bytes of every block as it is kept."""
        return tuple(small or size for small, size in zip(self.packed or self.sizes, self.sizes, strict=True))

    @property
    def widened(self) -> tuple[int, ...]:
        """Numbers of the blocks that are kept in 8 bit."""
        return tuple(i for i, small in enumerate(self.packed) if small)


@dataclass(frozen=True)
class Plan:
    """How a network runs on a device.

    Attributes:
        streamed: numbers of the blocks that pass through, rising.
        widened: numbers of the blocks that are kept in 8 bit and run from the shared buffers too.
        resident: bytes of weights that stay.
        passing: bytes of weights that pass through at every step.
        slots: bytes of the buffers they pass through.
        activations: bytes of intermediate results, tables of the run included.
        is_stacked: whether guidance branches run in one batch.
        waiting: where streamed blocks wait: "device" where none are, "memory", or "file" where main memory is short.
        peak: bytes expected at the most.
    """

    streamed: tuple[int, ...]
    resident: int
    passing: int
    slots: int
    activations: int
    is_stacked: bool
    waiting: Waiting
    peak: int
    widened: tuple[int, ...] = ()


def spread(large: Sequence[int], count: int) -> tuple[int, ...]:
    """Pick ``count`` of the block numbers ``large``, as evenly as whole numbers allow."""
    return tuple(large[(2 * i + 1) * len(large) // (2 * count)] for i in range(count))


@dataclass(frozen=True)
class Budget:
    """What a run may use.

    Attributes:
        vram: bytes that the device may be filled with; None where nobody counts: everything stays.
        ram: bytes of main memory for weights that wait; None: enough.
        is_smallest: let as much pass through as can, one branch at a time, straight from the files.
        reserve: bytes that were taken off ``vram`` already (``without_reserve``), for messages about what was given.
    """

    vram: int | None = None
    ram: int | None = None
    is_smallest: bool = False
    reserve: int = 0

    @property
    def given(self) -> int:
        """Bytes of the device as they were given."""
        return self.vram + self.reserve


def plan_network(
    blocks: Blocks, budget: Budget, *, stacked: int, single: int, tables: int = 0, may_stack: bool = True
) -> Plan:
    """Plan a network for a device.

    Args:
        blocks: its weights.
        budget: what it may use.
        stacked: bytes of intermediate results with all guidance branches in one batch.
        single: the same with one branch at a time.
        tables: bytes of what ``prepare`` makes and every step reads.
        may_stack: False where the caller wants one branch at a time.

    Raises:
        DeviceError: if not even the smallest plan fits; the message says how much that needs.
    """
    vram, kept, widened = budget.vram, blocks.kept, blocks.widened
    # Prepared pieces are gone before the first step computes.
    wanted = [(True, stacked), (False, single)] if may_stack and not budget.is_smallest else [(False, single)]
    large = _large(blocks)
    counts = [len(large)] if budget.is_smallest else range(len(large) + 1)
    # Branches run in turn before anything passes through.
    choices = [(wanted[0], 0)] if len(wanted) > 1 else []
    for (is_stacked, step), count in (*choices, *((wanted[-1], count) for count in counts)):
        streamed = spread(large, count)
        through = {*streamed, *widened}
        slots = min(SLOTS, len(through)) * max((blocks.sizes[i] for i in through), default=0)
        passing = sum(kept[i] for i in streamed)
        resident = sum(kept) + blocks.rest - passing
        activations = tables + max(step, blocks.visited)
        peak = resident + slots + activations
        if vram is None or peak <= vram:
            is_short = budget.is_smallest or (budget.ram is not None and passing > budget.ram)
            waiting: Waiting = "device" if not streamed else "file" if is_short else "memory"
            return Plan(streamed, resident, passing, slots, activations, is_stacked, waiting, peak, widened)
    raise DeviceError(
        f"expected a budget of at least {least_of(peak, budget)} on the device for this network and size, got "
        f"{size_of(budget.given)}: raise it, or ask for a smaller size or fewer frames"
    )


def _large(blocks: Blocks) -> list[int]:
    limit = max(blocks.sizes, default=0) * SMALL_SHARE
    return [i for i, size in enumerate(blocks.sizes) if size >= limit]
