import pytest

from fusionframes.ff_kernels.bench.counting import record_ours
from fusionframes.ff_kernels.bench.workloads import WORKLOADS
from fusionframes.ff_kernels.runtime.budget import RESERVE_BYTES, fits, step_bytes


@pytest.mark.parametrize("name", ["keyframes-512", "interpolation-512", "keyframes-640x384"])
def test_step_bytes_are_a_little_more_than_the_recorder_counts(name):
    workload = WORKLOADS[name]
    config = workload.config
    told = step_bytes(2 * workload.frames, workload.size, config.model_channels, workload.dtype.itemsize)
    assert 1 <= told / record_ours(workload).peak_bytes < 1.5


def test_step_fits_with_room_for_workspace_only():
    assert fits(1000, 1000 + RESERVE_BYTES)
    assert not fits(1001, 1000 + RESERVE_BYTES)


def test_unknown_memory_is_tried():
    assert fits(1 << 50, None)
