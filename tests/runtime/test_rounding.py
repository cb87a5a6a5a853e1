"""Weights in 8 bit: how far they are off, which are left alone, and that streamed or not they are the same ones."""

import math

import pytest
import torch
from support import soroban
from support.tiny import draw
from torch import nn

from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.ops.rounding import can_round, round_weights, rounded, sqnr
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.runtime.placing import blocks_of, place
from fusionframes.ff_kernels.runtime.plan import Budget, plan_network

PROMPT = "a large red circle moves left on a white background"
LAYERS = {
    "linear": nn.Linear(40, 30), "conv": nn.Conv2d(16, 24, 3), "time": nn.Conv3d(16, 24, (3, 1, 1)),
    "doubling": nn.ConvTranspose2d(16, 24, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_in_8_bit_is_off_by_half_a_step_of_its_channel_at_the_most(name):
    layer = LAYERS[name]
    # Channels of very different size, each of which has its own scale.
    axis = 1 if name == "doubling" else 0
    sizes = torch.logspace(-3, 2, layer.weight.shape[axis]).view(
        [-1 if i == axis else 1 for i in range(layer.weight.ndim)]
    )
    weight = draw(*layer.weight.shape) * sizes
    kept, out = rounded(layer, weight, torch.float32), torch.empty_like(weight)
    kept.write_into(out)
    others = [i for i in range(weight.ndim) if i != axis]
    assert ((out - weight).abs() <= 0.5001 * weight.abs().amax(others, keepdim=True) / 127).all()
    assert kept.data.dtype is torch.int8
    assert 40 < sqnr(weight, kept) < 50


def test_zero_channels_stay_zero_and_exact_ones_lose_nothing():
    weight = torch.zeros(4, 300)
    weight[1] = torch.arange(300) % 255 - 127.0
    kept, out = rounded(nn.Linear(300, 4), weight, torch.float32), torch.ones(4, 300)
    kept.write_into(out)
    assert torch.equal(out, weight)
    assert sqnr(weight, kept) == math.inf


def test_tables_biases_and_small_layers_are_no_layers_in_8_bit():
    assert not can_round(nn.Embedding(100, 100), "weight", torch.Size((100, 100)))
    assert not can_round(nn.Linear(5, 5), "weight", torch.Size((5, 5)))
    assert not can_round(nn.Linear(5, 5000), "bias", torch.Size((5000,)))


class Pair(nn.Module):
    """Two blocks; every channel of the second has one number so large that the others vanish beside it."""

    def __init__(self):
        super().__init__()
        self.fine, self.bad = nn.Linear(32, 2048), nn.Linear(2048, 8)
        with torch.no_grad():
            self.bad.weight.copy_(draw(8, 2048) * 0.02)
            self.bad.weight[:, 7] = 4.0

    def step_blocks(self):
        return [self.fine, self.bad]

    def nothing(self):
        return []

    conditioner_modules = layers_read_apart = looked_up = outer_blocks = nothing


def test_layers_that_lose_too_much_are_left_alone_and_named():
    network = Pair()
    weights = [network.fine.weight.detach().clone(), network.bad.weight.detach().clone()]
    report, blocks = round_weights(network), blocks_of(network, torch.float32)
    # What is left alone counts as what it is.
    assert blocks.packed == (32 * 2048 + 4 * 2048 + 4 * 2048, 0)
    plan = plan_network(blocks, Budget(), stacked=0, single=0)
    with place(network, plan, torch.device("cpu"), torch.float32):
        outs = [network.fine(torch.eye(32)), network.bad(torch.eye(2048))]
    assert (list(report.layers), report.left) == (["fine"], ["bad"])
    assert "1 layers in 8 bit, the worst 'fine' at 4" in report.phrase()
    assert "left in 16 bit: bad" in report.phrase()
    assert (outs[0][0] - outs[0][1] - (weights[0][:, 0] - weights[0][:, 1])).abs().max() < 0.01


def predictions(rounds: bool, replayed: list | None = None, steps: int = 12, is_stacked: bool = True, **options):
    """What the demo's keyframe network is shown and says at every step, and the pipeline."""
    pipeline = demo_pipeline(rounds=rounds, **options)
    network, calls = pipeline.networks._open("keyframe").network, []
    forward, shown = network.forward, iter(replayed or [])

    def watched(x, *given, **options):
        x = next(shown)[0] if replayed else x
        calls.append((x.clone(), forward(x, *given, **options).clone()))
        return calls[-1][1]

    network.forward = watched
    settings = pipeline.resolve(Settings(fps="low", steps=steps, is_stacked=is_stacked))
    text = demo_pipeline(**options).encode_text([PROMPT])
    pipeline.sample_keyframes(text, settings)
    return calls, pipeline


def test_what_the_demo_predicts_in_8_bit_is_within_the_limits():
    exact, _ = predictions(False)
    kept, pipeline = predictions(True, exact)
    values = []
    for (_, expected), (_, out) in zip(exact, kept, strict=True):
        values.append(10 * torch.log10(expected.double().square().sum() / (out - expected).double().square().sum()))
    assert torch.stack(values).mean() > 70
    assert min(values) > 60
    assert len(pipeline.networks.reports["keyframe"].layers) > 50


def test_weights_in_8_bit_take_less_and_pass_through_as_they_stay():
    room, pipeline = predictions(True, steps=1, is_stacked=False, device=soroban.NAME)
    held = pipeline.networks.loaded["keyframe"]
    assert (held.placed.plan.streamed, held.placed.plan.waiting) == ((), "device")
    assert held.placed.plan.resident < 0.5 * held.blocks.step
    tight, pipeline = predictions(True, steps=1, is_stacked=False, device=soroban.NAME, budget=Budget(7_000_000))
    assert pipeline.networks.loaded["keyframe"].placed.plan.streamed
    for (_, expected), (_, out) in zip(room, tight, strict=True):
        assert torch.equal(out, expected)
