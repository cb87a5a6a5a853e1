"""How much main memory there is for a run, and what is pinned of it."""

import gc

import pytest
import torch

from fusionframes.ff_kernels.runtime import host

MACHINE = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n"}
V2 = {
    "proc/self/cgroup": "0::/outer/inner\n",
    "sys/fs/cgroup/outer/memory.max": "4096000", "sys/fs/cgroup/outer/memory.current": "2048000",
    "sys/fs/cgroup/outer/memory.stat": "anon 5\ninactive_file 1000\n",
    "sys/fs/cgroup/outer/inner/memory.max": "max", "sys/fs/cgroup/outer/inner/memory.current": "7",
}  # fmt: skip
V1 = {
    "proc/self/cgroup": "3:cpu:/x\n5:memory,hugetlb:/docker/a\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "100",
    "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": "3000000",
    "sys/fs/cgroup/memory/docker/a/memory.usage_in_bytes": "1000000",
    "sys/fs/cgroup/memory/docker/a/memory.stat": "total_inactive_file 500\n",
}
CASES = {"machine": ({}, 5000 * 1024), "v2": (V2, 2049000), "v1": (V1, 2000500)}


@pytest.mark.parametrize("name", CASES)
def test_the_least_of_the_machine_and_its_control_groups_is_free(tmp_path, name):
    groups, free = CASES[name]
    for path, text in {**MACHINE, **groups}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert host.free_ram(tmp_path) == free


def test_this_machine_has_memory():
    assert 0 < host.free_ram() < host.total_ram()


def test_pins_have_the_size_of_the_weights_and_are_given_back():
    pinned = {}
    pins = host.Pins(1 << 20, pinned.__setitem__, pinned.pop)
    weights = [torch.randn(5, 3), torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last).half()]
    held = [pins.hold(weight) for weight in weights]
    assert sorted(pinned.values()) == [60, 288]
    assert pins.used == 348
    for weight, kept in zip(weights, held, strict=True):
        assert torch.equal(weight, kept)
        assert kept.stride() == weight.stride()
        assert kept.data_ptr() in pinned
    del held, kept
    gc.collect()
    assert (pins.used, pinned) == (0, {})


@pytest.mark.parametrize("limit", [10, 1 << 20])
def test_refused_pins_leave_weights_in_ordinary_memory_and_are_said_once(limit):
    def refuse(address, size):
        raise RuntimeError("the driver answered 2")

    pins, weight = host.Pins(limit, refuse, int), torch.ones(4, 4)
    with pytest.warns(UserWarning, match="pinned memory was refused .* weights wait in ordinary memory") as said:
        held = [pins.hold(weight), pins.hold(weight)]
    assert len(said) == 1
    assert all(kept is weight for kept in held)
