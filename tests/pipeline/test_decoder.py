"""MoVQ in 16 bit: where it is tried, what judges it, and what a run says of it."""

import copy
from types import SimpleNamespace

import pytest
import torch

from fusionframes.ff_kernels.demo.evaluate import true_clips
from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.metrics.fidelity import psnr
from fusionframes.ff_kernels.pipeline import needs
from fusionframes.ff_kernels.pipeline.planning import plan_run
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.runtime.plan import Budget
from fusionframes.ff_kernels.stages.narrow import LEAST_DB, NarrowDecoder, choose_decoder

CPU = torch.device("cpu")
BALANCED = Settings(fps="low", preset="balanced")


@pytest.fixture(scope="module")
def pipeline():
    return demo_pipeline(parity="strict")


@pytest.fixture(scope="module")
def movq(pipeline):
    return pipeline.network("movq").network


@pytest.fixture(scope="module")
def latents(movq):
    return movq.encode(true_clips(1, 5)[0] * 2 - 1).detach()


@pytest.fixture
def quick(monkeypatch):
    """A processor that is faster in bfloat16."""
    monkeypatch.setattr(needs, "quick_dtypes", lambda device: (torch.bfloat16,))


def narrow(movq, dtype, spoil=1.0):
    network = copy.deepcopy(movq).to(dtype)
    network.decoder.conv_out.weight.mul_(spoil)
    return NarrowDecoder(lambda _: network, dtype, torch.bfloat16)


def test_16_bit_decodes_the_clip_if_its_first_frame_is_near_enough(movq, latents):
    halves = [narrow(movq, torch.bfloat16)]
    chosen, judged = choose_decoder(movq, halves, latents)
    assert chosen is halves[0]
    frames, exact = (((net.decode(latents) + 1) / 2).clamp(0, 1) for net in (chosen, movq))
    assert LEAST_DB <= judged.distances[torch.bfloat16] < 80
    assert psnr(exact, frames).min() >= LEAST_DB
    assert judged.phrase().startswith("decoded in bfloat16: on a first frame bfloat16 is ")


@pytest.mark.parametrize("spoil", [1.01, float("inf")], ids=["too_far", "overflow"])
def test_16_bit_that_is_too_far_makes_way_for_the_next_and_last_for_float32(movq, latents, spoil):
    bad, good = narrow(movq, torch.float16, spoil), narrow(movq, torch.bfloat16)
    assert choose_decoder(movq, [bad, good], latents)[0] is good
    chosen, judged = choose_decoder(movq, [bad], latents)
    assert chosen is movq
    assert judged.dtype is torch.float32
    assert judged.distances[torch.float16] < LEAST_DB
    assert judged.phrase().startswith("decoded in float32: on a first frame float16 is ")


def test_clip_that_overflows_after_its_first_frame_goes_on_wider_and_the_next_one_starts_anew(pipeline, movq, latents):
    made = []

    def network_in(dtype):
        made.append(copy.deepcopy(movq).to(dtype))
        return made[-1]

    first, second = (NarrowDecoder(network_in, torch.float16, torch.bfloat16) for _ in range(2))
    with pytest.warns(UserWarning, match="overflowed in float16 and goes on in torch.bfloat16"):
        pixels = first.decode(latents * 1e4)
    assert first.dtype is torch.bfloat16
    assert torch.equal(pixels, made[2].decode((latents * 1e4).bfloat16()).float())
    # The network that overflowed is not cast: whoever holds it decodes the next clip in float16.
    assert second.decode(latents).isfinite().all()
    assert [next(network.parameters()).dtype for network in made] == [torch.float16, torch.float16, torch.bfloat16]


def test_16_bit_lies_beside_float32_and_in_place_of_16_bit():
    networks = demo_pipeline().networks
    network = networks.get("movq").network
    half = networks.movq_in("movq", torch.bfloat16)
    assert networks.movq_in("movq", torch.bfloat16) is half
    assert networks.movq_in("movq", torch.float32) is network
    networks.loaded["movq"].network, networks.loaded["movq"].dtype = half, torch.bfloat16
    assert networks.movq_in("movq", torch.float32) is not network
    assert networks.loaded["movq"].dtype is torch.float32
    assert networks.loaded["movq"].narrow is None


def test_presets_of_few_steps_decode_in_16_bit_where_that_is_faster(pipeline, quick, latents):
    frames = {}
    for name in ("released", "balanced"):
        settings = pipeline.resolve(Settings(fps="low", preset=name))
        pipeline.networks.reports.clear()
        frames[name] = pipeline.decode(latents, settings).permute(0, 3, 1, 2)
        assert ("movq" in pipeline.networks.reports) == (name == "balanced")
    assert 0 < (frames["released"] - frames["balanced"]).abs().max() < 0.02
    assert psnr(*frames.values()).min() >= LEAST_DB
    # Another clip is judged on its own, and the same one gives the same frames again.
    pipeline.decode(latents.flip(0), settings)
    assert torch.equal(pipeline.decode(latents, settings).permute(0, 3, 1, 2), frames["balanced"])


def test_float32_can_be_had_with_any_preset_and_16_bit_with_the_released_one(pipeline, quick):
    for preset, given, tries in (("balanced", False, False), ("released", True, True), ("released", None, False)):
        settings = pipeline.resolve(Settings(fps="low", preset=preset, narrow_decoder=given))
        assert bool(plan_run(pipeline, settings)[-1].plan.tries) is tries


def test_both_widths_are_planned_for_where_there_is_room(quick):
    alone = plan_run(pipeline := demo_pipeline(), pipeline.resolve(Settings(fps="low")))[-1].plan
    both = plan_run(pipeline, pipeline.resolve(BALANCED))[-1]
    assert both.plan.weights == alone.weights * 3 // 2
    assert "bfloat16 where a first frame is within 58.9 dB" in both.phrase()
    assert "in bfloat16 or float32" in both.row()[5]
    room = SimpleNamespace(config=pipeline.models.require("movq")[1].config)
    need = needs.decoding_need(room.config, 5, (64, 64), False, may_narrow=True)
    for vram, tries, chunk in ((both.plan.peak, 1, 5), (both.plan.peak - 1, 0, 5), (alone.peak - 1, 0, 4)):
        values = needs.movq_values(room.config, "fast")
        plan = needs.plan_movq(room.config, need, Budget(vram), CPU, torch.float32, values)
        assert (len(plan.tries), plan.chunk, plan.is_as_released) == (tries, chunk, True)


def test_a_processor_without_matrix_units_stays_in_float32(pipeline, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert plan_run(pipeline, pipeline.resolve(BALANCED))[-1].plan.tries == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_processor_decodes_the_smallest_plan_in_the_dtype_of_the_other_networks(dtype):
    networks = demo_pipeline(dtype=dtype).networks
    need = needs.decoding_need(networks.models.require("movq")[1].config, 5, (64, 64), False)
    assert networks.plan_movq("movq", need, Budget(is_smallest=True)).dtype is dtype
