"""A plan keeps its budget, streams no more than it must, and spreads what it streams."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionframes.ff_kernels.errors import DeviceError
from fusionframes.ff_kernels.runtime.plan import SMALL_SHARE, Blocks, Budget, plan_network, spread

sizes = st.lists(st.integers(1, 300), min_size=1, max_size=130).map(tuple)


def smallest(blocks: Blocks, **options: int) -> int:
    """The least budget that has a plan, by bisection."""
    low, high = 0, blocks.step + 10_000
    while high - low > 1:
        middle = (low + high) // 2
        try:
            plan_network(blocks, Budget(middle, None), **options)
            high = middle
        except DeviceError:
            low = middle
    return high


@given(sizes, st.integers(0, 100), st.integers(0, 500), st.integers(0, 400), st.integers(0, 3000))
def test_a_plan_stays_within_its_budget_and_places_every_weight_once(parts, rest, activations, visited, more):
    blocks = Blocks(parts, rest, visited=visited)
    options = {"stacked": 2 * activations, "single": activations}
    vram = smallest(blocks, **options) + more
    plan = plan_network(blocks, Budget(vram, None), **options)
    assert plan.peak <= vram
    assert plan.resident + plan.passing == blocks.step
    assert plan.passing == sum(parts[i] for i in plan.streamed)
    assert plan.peak == plan.resident + plan.slots + plan.activations
    assert plan.activations >= max(visited, activations)
    assert list(plan.streamed) == sorted(set(plan.streamed))
    # Twice the room never streams more blocks.
    assert len(plan_network(blocks, Budget(2 * vram, None), **options).streamed) <= len(plan.streamed)
    if plan.streamed:
        assert not plan.is_stacked
        assert min(parts[i] for i in plan.streamed) >= SMALL_SHARE * max(parts)


@given(st.integers(1, 130), st.data())
def test_what_is_streamed_is_spread_evenly(total, data):
    count = data.draw(st.integers(1, total))
    picked = spread(range(total), count)
    assert len(set(picked)) == count
    # Around the circle, since the first block follows the last.
    gaps = [b - a for a, b in zip(picked, [*picked[1:], picked[0] + total], strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_everything_stays_where_nobody_counts_or_there_is_room():
    blocks = Blocks((10, 10), 5, visited=7)
    for vram in (None, 25 + 8):
        plan = plan_network(blocks, Budget(vram, 0), stacked=8, single=4)
        assert (plan.streamed, plan.waiting, plan.is_stacked, plan.peak) == ((), "device", True, 33)
    # Branches run in turn before anything is streamed.
    plan = plan_network(blocks, Budget(32, 0), stacked=8, single=4)
    assert (plan.streamed, plan.is_stacked, plan.peak) == ((), False, 32)


def test_streamed_weights_wait_in_the_file_where_memory_is_short():
    blocks = Blocks((10,) * 10, 0)
    plans = [plan_network(blocks, Budget(60, ram), stacked=0, single=0) for ram in (None, 1000, 20)]
    assert [plan.waiting for plan in plans] == ["memory", "memory", "file"]


def test_a_budget_below_the_smallest_plan_is_refused_with_what_the_smallest_needs():
    blocks = Blocks((2 * 10**9,) * 4, 10**9)
    with pytest.raises(DeviceError, match=r"at least 5\.50 GB .* got 3\.00 GB"):
        plan_network(blocks, Budget(3 * 10**9, None), stacked=10**9, single=5 * 10**8)
    assert plan_network(blocks, Budget(55 * 10**8, None), stacked=10**9, single=5 * 10**8).peak == 55 * 10**8


def test_blocks_in_8_bit_run_from_the_buffers_and_stay_in_half_the_room():
    blocks = Blocks((4, 10, 10, 10), 6, packed=(0, 5, 5, 5))
    plan = plan_network(blocks, Budget(6 + 4 + 15 + 20 + 2), stacked=2, single=2)
    assert (plan.streamed, plan.widened, plan.resident, plan.slots) == ((), (1, 2, 3), 25, 20)
    plan = plan_network(blocks, Budget(46), stacked=2, single=2)
    assert (plan.streamed, plan.passing, plan.resident, plan.waiting) == ((2,), 5, 20, "memory")
