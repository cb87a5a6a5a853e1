"""The targets that our side has to meet at full size, counted on the meta device."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusionframes.ff_kernels import bench
from fusionframes.ff_kernels.bench.clip_costs import FLOAT32_PEAKS, clip_costs, clip_table, float32_seconds
from fusionframes.ff_kernels.bench.counting import PEAKS, TARGETS, figure, record_ours
from fusionframes.ff_kernels.bench.estimates import acceptance_estimates
from fusionframes.ff_kernels.bench.estimates import table as estimate_table
from fusionframes.ff_kernels.bench.known_values import KnownValues
from fusionframes.ff_kernels.bench.recorder import Cost, Recording, record
from fusionframes.ff_kernels.bench.workloads import WORKLOADS
from fusionframes.ff_kernels.models import blocks
from fusionframes.ff_kernels.models.configs import INTERPOLATION_V11
from fusionframes.ff_kernels.models.interpolation_unet import InterpolationUNet


@pytest.fixture(scope="module")
def ours():
    found = {}

    def get(name):
        if name not in found:
            found[name] = record_ours(WORKLOADS[name])
        return found[name]

    return get


# Lines of the page's table: workload, figure, divisor and format of what it says of ours.
SHOWN = {
    "keyframe step: GB moved": ("keyframes-512", "bytes", 1e9, ".1f"),
    "keyframe step: launches": ("keyframes-512", "launches", 1, ",.0f"),
    "keyframe step: GB of parameters read": ("keyframes-512", "parameter_bytes", 1e9, ".2f"),
    "keyframe step: GB live at the peak": ("keyframes-512", "peak_bytes", 1e9, ".2f"),
    "interpolation step, 14 gaps: TFLOP": ("interpolation-512", "flops", 1e12, ".1f"),
    "interpolation step, 14 gaps: GB moved": ("interpolation-512", "bytes", 1e9, ".1f"),
    "decoding, per frame: GB moved": ("decode-512", "bytes", 1e9, ".1f"),
    "decoding: GB live at the peak": ("decode-512", "peak_bytes", 1e9, ".2f"),
}


def test_page_says_what_is_counted(ours):
    page = (Path(bench.__file__).parent / "README.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in page.splitlines() if "|" in line]
    said = {cells[0]: cells[2].split()[0] for cells in lines if cells[0] in SHOWN}
    assert said == {
        label: f"{figure(ours(name), key, WORKLOADS[name]) / unit:{form}}"
        for label, (name, key, unit, form) in SHOWN.items()
    }


@pytest.fixture(scope="module")
def costs():
    return clip_costs()


def test_page_of_the_presets_says_what_a_clip_costs_by_count(costs):
    page = (Path(bench.__file__).parents[1] / "bench/QUALITY.md").read_text(encoding="utf-8")
    assert "\n".join(clip_table(costs)) in page
    # Ten times the release's formulation: what the preset is for.
    assert costs[0].seconds / next(cost for cost in costs if "balanced" in cost.name).seconds > 10


def test_presets_that_decode_in_16_bit_pay_for_it_with_a_first_frame_in_both_dtypes(costs, ours):
    _, released, balanced, fast = costs
    decoder = WORKLOADS["decode-512"]
    narrow = ours("decode-512").seconds(*PEAKS["H200"]) / decoder.frames
    wide = float32_seconds(record_ours(replace(decoder, is_full_size=False)), "NVIDIA H200") / decoder.frames
    assert released.decoding == pytest.approx(57 * wide)
    assert balanced.decoding == fast.decoding == pytest.approx(58 * narrow + wide)
    assert [cost.decoded_in for cost in costs] == ["16 bit", "float32", "16 bit", "16 bit"]
    # Twice the bytes at the least, and products at half the rate or less.
    assert 2 < wide / narrow < 4


def test_float32_multiplies_in_convolutions_at_their_own_rate():
    (convolutions, rest), bandwidth = FLOAT32_PEAKS["H200"], PEAKS["H200"][1]
    work, bytes_moved = int(1e15), int(1e13)
    recording = Recording(
        [
            Cost("aten::convolution", 1, work, 0),
            Cost("fused_attention", 1, work, 0),
            Cost("aten::add", 1, 0, bytes_moved),
        ]
    )
    expected = work / convolutions + work / rest + bytes_moved / bandwidth
    assert float32_seconds(recording, "NVIDIA H200") == pytest.approx(expected)


def test_page_says_how_long_an_acceptance_should_take_and_that_is_within_eight_minutes():
    estimates = acceptance_estimates()
    assert sum(estimate.seconds for estimate in estimates) < 8 * 60
    page = (Path(bench.__file__).parent / "README.md").read_text(encoding="utf-8")
    assert "\n".join(estimate_table(estimates)) in page


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.workload}-{target.figure}")
def test_ours_stays_within_the_target(ours, target):
    assert figure(ours(target.workload), target.figure, WORKLOADS[target.workload]) <= target.limit


def test_parts_of_feed_forwards_and_blocks_lower_the_peak_of_a_keyframe_step(ours, monkeypatch):
    parted = ours("keyframes-512")
    monkeypatch.setattr(blocks, "HIDDEN_BYTES", 1 << 50)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 50)
    whole = record_ours(WORKLOADS["keyframes-512"])
    assert parted.peak_bytes < 0.83e9
    assert parted.peak_bytes < 0.81 * whole.peak_bytes
    assert parted.flops == whole.flops


def test_interpolation_v11_does_not_work_over_time_where_the_result_is_dropped():
    """The unconditional half has every temporal merge at 0: 16 % of the step (ops/EXACTNESS.md, "Dead half")."""
    network = InterpolationUNet(INTERPOLATION_V11, device="meta", dtype=torch.float16)
    x = torch.empty(22, INTERPOLATION_V11.num_channels, 64, 64, dtype=torch.float16, device="meta")
    x = x.contiguous(memory_format=torch.channels_last)
    flops = {}
    for name, merge in (("released", [1.0, 1.0]), ("ours", [1.0, 0.0])):
        with torch.no_grad(), KnownValues():
            told = (
                torch.empty(2, 33, INTERPOLATION_V11.context_dim, dtype=torch.float16, device="meta"),
                torch.ones(2, 33, dtype=torch.long, device="meta"),
                torch.arange(10, device="meta"),
            )
            conditions = network.prepare(*told, num_gaps=11, skip_frames=3, merge=torch.tensor(merge))
        flops[name] = record(lambda c=conditions: network(x, c), network).flops
    assert 1 - flops["ours"] / flops["released"] == pytest.approx(0.16, abs=0.01)
