"""Compile every kernel for real devices, which needs none: the interpreter accepts more than the compiler does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusionframes.ff_kernels.ops.registry import unavailable

PROGRAM = Path(__file__).parents[1] / "support" / "compiling.py"
# KiB that a program may share: 7.5 is Turing, 8.0 an A100, 8.6 a 3090, 8.9 a 4090, 9.0 an H100 or H200, 10.0 a B200,
# 12.0 a 5090; gfx90a an MI200, gfx942 an MI300, gfx1100 a 7900.
SHARED_KIB = {"sm_75": 64, "sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99,
              "gfx90a": 64, "gfx942": 64, "gfx1100": 64}  # fmt: skip
# For one card every variant of every kernel is compiled, for the others one of each. Turing has no bfloat16; float32
# takes part where registers are few.
JOBS = [(card, "bfloat16" if card in ("sm_80", "sm_90", "sm_100", "gfx942") else "float16", card == "sm_89")
        for card in SHARED_KIB]  # fmt: skip
JOBS += [(card, "float32", False) for card in ("sm_89", "gfx1100")]
KERNELS = {"_statistics_kernel", "_modulate_kernel", "_spatial_kernel", "_attention_kernel", "_linear_kernel"}
KERNELS |= {"_step_kernel", "_quantile_step_kernel"}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What the compilers made of the kernels, by card."""
    reason = unavailable("triton")
    if reason:
        pytest.skip(f"triton: {reason}")
    folder = tmp_path_factory.mktemp("compiled")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([sys.executable, str(PROGRAM), json.dumps(jobs)], env=environment, cwd=folder, **pipes)
        for jobs in (JOBS[::2], JOBS[1::2])
    ]
    lines = []
    for process in started:
        out, error = process.communicate()
        assert process.returncode == 0, error
        lines += out.splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("card", SHARED_KIB)
def test_every_kernel_fits_the_card_and_reads_sixteen_bytes_at_a_time(card, reports):
    made = [report for report in reports if report["card"] == card]
    # Products are refused for Turing.
    assert {report["kernel"] for report in made} == KERNELS - ({"_linear_kernel"} if card == "sm_75" else set())
    assert [report for report in made if report["spills"]] == []
    assert [report for report in made if report["shared"] > SHARED_KIB[card] * 1024] == []
    assert {report["kernel"] for report in made if report["wide"]} == {report["kernel"] for report in made}
