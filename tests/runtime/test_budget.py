import pytest

from fusionframes.ff_kernels.bench.counting import record_ours
from fusionframes.ff_kernels.bench.workloads import WORKLOADS
from fusionframes.ff_kernels.runtime.budget import RESERVE_BYTES, step_bytes, without_reserve


@pytest.mark.parametrize("name", ["keyframes-512", "interpolation-512", "keyframes-640x384"])
def test_step_bytes_are_a_little_more_than_the_recorder_counts(name):
    workload = WORKLOADS[name]
    config = workload.config
    told = step_bytes(2 * workload.frames, workload.size, config.model_channels, workload.dtype.itemsize)
    assert 1 <= told / record_ours(workload).peak_bytes < 1.5


def test_a_tenth_of_a_budget_and_no_more_than_half_a_gibibyte_is_kept_in_reserve():
    assert without_reserve(4 * 10**9) == 36 * 10**8
    assert without_reserve(24 * 10**9) == 24 * 10**9 - RESERVE_BYTES
