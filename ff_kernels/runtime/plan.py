"""What of a network stays on a device and what passes through it, for a budget of memory; pure arithmetic.

Sizes are bytes. A step computes for longer than its weights take to arrive, unless many of them come in one go: so
blocks that pass through are spread evenly between those that stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import DeviceError

# Blocks smaller than this share of the largest one always stay: together they are little, and each costs a turn.
SMALL_SHARE = 0.15
SLOTS = 2
Waiting = Literal["device", "memory", "file"]


@dataclass(frozen=True)
class Blocks:
    """The weights of a network, as a plan sees them.

    Attributes:
        sizes: bytes of every block that a step runs, in their order.
        rest: bytes of what a step needs besides: first and last layers.
        visited: bytes of the largest piece that ``prepare`` reads and a step does not.
        prepared: bytes of all such pieces.
    """

    sizes: tuple[int, ...]
    rest: int
    visited: int = 0
    prepared: int = 0

    @property
    def step(self) -> int:
        """Bytes of all that a step reads."""
        return sum(self.sizes) + self.rest


@dataclass(frozen=True)
class Plan:
    """How a network runs on a device.

    Attributes:
        streamed: numbers of the blocks that pass through, rising.
        resident: bytes of weights that stay.
        passing: bytes of weights that pass through at every step.
        slots: bytes of the buffers they pass through.
        activations: bytes of intermediate results.
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


def spread(large: Sequence[int], count: int) -> tuple[int, ...]:
    """Pick ``count`` of the block numbers ``large``, as evenly as whole numbers allow."""
    return tuple(large[(2 * i + 1) * len(large) // (2 * count)] for i in range(count))


def plan_network(
    blocks: Blocks, *, vram: int | None, ram: int | None, stacked: int, single: int, may_stack: bool = True
) -> Plan:
    """Plan a network for a device.

    Args:
        blocks: its weights.
        vram: bytes the device may be filled with; None where nobody counts: everything stays.
        ram: bytes of main memory for weights that wait; None: enough.
        stacked: bytes of intermediate results with all guidance branches in one batch.
        single: the same with one branch at a time.
        may_stack: False where the caller wants one branch at a time.

    Raises:
        DeviceError: if not even the smallest plan fits; the message says how much that needs.
    """
    wanted = [(True, stacked), (False, single)] if may_stack else [(False, single)]
    # Prepared pieces are gone before the first step computes.
    for is_stacked, activations in wanted:
        peak = blocks.step + max(activations, blocks.visited)
        if vram is None or peak <= vram:
            return Plan((), blocks.step, 0, 0, activations, is_stacked, "device", peak)
    is_stacked, activations = wanted[-1]
    limit = max(blocks.sizes, default=0) * SMALL_SHARE
    large = [i for i, size in enumerate(blocks.sizes) if size >= limit]
    for count in range(1, len(large) + 1):
        streamed = spread(large, count)
        passing = sum(blocks.sizes[i] for i in streamed)
        slots = min(SLOTS, count) * max(blocks.sizes[i] for i in streamed)
        resident = blocks.step - passing
        peak = resident + slots + max(activations, blocks.visited)
        if peak <= vram:
            waiting: Waiting = "memory" if ram is None or passing <= ram else "file"
            return Plan(streamed, resident, passing, slots, activations, is_stacked, waiting, peak)
    raise DeviceError(
        f"expected a budget of at least {peak / 1e9:.2f} GB on the device for this network and size, got "
        f"{vram / 1e9:.2f} GB: raise it, or ask for a smaller size or fewer frames"
    )
