"""The targets that our side has to meet at full size, counted on the meta device."""

import pytest

from fusionframes.ff_kernels.bench.counting import TARGETS, figure, record_ours
from fusionframes.ff_kernels.bench.workloads import WORKLOADS

# Remove a line when the target is met.
UNMET = {
    ("decode-512", "bytes"): "residual adds and the maps of the norms are passes of their own",
}


def marked(target):
    reason = UNMET.get((target.workload, target.figure))
    marks = [] if reason is None else [pytest.mark.xfail(strict=False, reason=reason)]
    return pytest.param(target, marks=marks, id=f"{target.workload}-{target.figure}")


@pytest.fixture(scope="module")
def ours():
    found = {}

    def get(name):
        if name not in found:
            found[name] = record_ours(WORKLOADS[name])
        return found[name]

    return get


@pytest.mark.parametrize("target", [marked(target) for target in TARGETS])
def test_ours_stays_within_the_target(ours, target):
    assert figure(ours(target.workload), target.figure, WORKLOADS[target.workload]) <= target.limit


def test_unmet_targets_are_targets():
    assert UNMET.keys() <= {(target.workload, target.figure) for target in TARGETS}
