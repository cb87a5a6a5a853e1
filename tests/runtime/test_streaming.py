"""Blocks that share buffers compute what resident ones compute, and no buffer is read early or filled late."""

import pytest
import torch
from support.tiny import INTERPOLATION_V10, INTERPOLATION_V11, KEYFRAME_V10, KEYFRAME_V11, context, draw, unet

from fusionframes.ff_kernels.checkpoints.folding import fold
from fusionframes.ff_kernels.errors import DeviceError
from fusionframes.ff_kernels.models.unet import UNet
from fusionframes.ff_kernels.runtime.placing import blocks_of, place
from fusionframes.ff_kernels.runtime.plan import Budget, plan_network
from fusionframes.ff_kernels.runtime.streaming import Streamer, places_of

CPU = torch.device("cpu")
CONFIGS = [KEYFRAME_V10, KEYFRAME_V11, INTERPOLATION_V10, INTERPOLATION_V11]


def run(network: UNet, steps: int = 2) -> list[torch.Tensor]:
    """Predictions of two steps; the second starts where the first one's last block left the buffers."""
    text, mask = context(2)
    shape = {"num_gaps": 3, "skip_frames": 3} if network.config.stage == "interpolation" else {"keyframes": 3}
    if network.config.stage == "keyframe":
        shape["positions"] = torch.arange(3)
        if network.config.family == "1.1":
            shape |= {"noise_level": 20, "motion_score": 10}
    conditions = network.prepare(text, mask, torch.tensor([900, 100])[:steps], **shape)
    x = draw(6, network.config.num_channels, 4, 4, seed=9)
    return [network(x, conditions, step) for step in range(steps)]


def budgets(network: UNet) -> list[int]:
    """From all that a step reads down to the least that works."""
    blocks, found = blocks_of(network, torch.float32), []
    for share in (1.2, 0.8, 0.6, 0.4, 0.3):
        try:
            plan_network(blocks, Budget(int(blocks.step * share)), stacked=0, single=0)
        except DeviceError:
            continue
        found.append(int(blocks.step * share))
    return found


@pytest.mark.parametrize("folded", [False, True], ids=["strict", "folded"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.stage}-{c.family}")
def test_streamed_networks_compute_what_resident_ones_do(config, folded):
    make = (lambda: fold(unet(config))) if folded else (lambda: unet(config))
    expected = run(make())
    counts = set()
    for vram in budgets(make()):
        network = make()
        plan = plan_network(blocks_of(network, torch.float32), Budget(vram), stacked=0, single=0)
        counts.add(len(plan.streamed))
        with place(network, plan, CPU, torch.float32):
            for out, wanted in zip(run(network), expected, strict=True):
                assert torch.equal(out, wanted)
    assert max(counts) > 2


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.stage}-{c.family}")
def test_blocks_are_listed_in_the_order_in_which_they_run(config):
    network, seen = unet(config), []
    for block in network.step_blocks():
        block.register_forward_pre_hook(lambda module, inputs: seen.append(module))
    run(network, steps=1)
    assert seen == network.step_blocks()


class Late:
    """Copies happen only when somebody waits for them, and what was read is spoilt before it is filled again."""

    def __init__(self):
        self.log, self.pending = [], []

    def copy(self, fill, after):
        assert after is None or after in self.log
        event = ("filled", len(self.log), fill)
        self.pending.append(event)
        self.log.append(event)
        return event

    def wait(self, filled):
        while self.pending and filled in self.pending:
            self.pending.pop(0)[2]()

    def mark(self):
        event = ("used", len(self.log))
        self.log.append(event)
        return event


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_buffer_is_read_only_after_its_copy_and_filled_only_after_its_reader(count, slots):
    layers = [torch.nn.Linear(4, 4, bias=False) for _ in range(count)]
    weights = [layer.weight.detach().clone() for layer in layers]
    order = Late()
    with Streamer(layers, [places_of(layer) for layer in layers], CPU, slots=slots, order=order):
        for _ in range(3):
            for layer, weight in zip(layers, weights, strict=True):
                assert torch.equal(layer(torch.eye(4)), weight.T)
    # With two buffers every copy but the first is ordered while another block computes.
    copies = [event for event in order.log if event[0] == "filled"]
    if min(slots, count) > 1 and count > slots:
        used = [i for i, event in enumerate(order.log) if event[0] == "used"]
        assert order.log.index(copies[1]) < used[0]


def test_blocks_have_no_weights_outside_of_a_run():
    layer = torch.nn.Linear(4, 4)
    streamer = Streamer([layer], [places_of(layer)], CPU)
    assert layer.weight.is_meta
    with streamer:
        layer(torch.zeros(1, 4))
        assert not layer.weight.is_meta
    assert layer.weight.is_meta


def test_a_source_that_fails_half_way_is_asked_again():
    layer = torch.nn.Linear(2, 2, bias=False)
    weight, (place_,) = layer.weight.detach().clone(), places_of(layer)

    class Flaky:
        shape, dtype, calls = weight.shape, weight.dtype, 0

        def write_into(self, out):
            self.calls += 1
            if self.calls == 1:
                out.fill_(float("nan"))
                raise OSError("gone")
            out.copy_(weight)

    from dataclasses import replace

    with Streamer([layer], [[replace(place_, source=Flaky())]], CPU):
        with pytest.raises(OSError, match="gone"):
            layer(torch.eye(2))
        assert torch.equal(layer(torch.eye(2)), weight.T)
