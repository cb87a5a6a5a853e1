"""Samples in parts: the same numbers with less memory."""

import pytest
import torch
from support.tiny import KEYFRAME_V10, KEYFRAME_V11, context, draw, relative, unet
from torch import nn

from fusionframes.ff_kernels.checkpoints.folding import fold
from fusionframes.ff_kernels.models import blocks
from fusionframes.ff_kernels.models.blocks import add_feed_forward, samples_at_once
from fusionframes.ff_kernels.models.keyframe_unet import keyframe_positions


@pytest.mark.parametrize(
    ("bytes_each", "samples", "multiple", "expected"),
    [
        (10, 10, None, 10),
        (30, 10, None, 3),
        (1000, 10, None, 1),
        (10, 30, 5, 10),
        (30, 30, 15, 3),
        (25, 28, 14, 2),
        (25, 26, 13, 1),
        (1000, 30, 15, 1),
    ],
)
def test_samples_at_once_are_whole_rows_or_even_shares_of_one(bytes_each, samples, multiple, expected):
    assert samples_at_once(bytes_each, samples, 100, multiple) == expected


@pytest.fixture
def small_parts(monkeypatch):
    """Limits that part the samples of the tiny networks, down to single ones in the widest blocks."""

    def part(size):
        monkeypatch.setattr(blocks, "HIDDEN_BYTES", size)
        monkeypatch.setattr(blocks, "BLOCK_BYTES", size)

    return part


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("per_row", [6, 1], ids=["row_per_clip", "row_per_sample"])
@pytest.mark.parametrize("config", [KEYFRAME_V10, KEYFRAME_V11], ids=["v10", "v11"])
@pytest.mark.parametrize("size", [1, 3000, 20000])
def test_network_in_parts_equals_the_whole(config, per_row, folds, size, small_parts):
    network, texts, frames = unet(config), context(2), 6
    network = fold(network) if folds else network
    if per_row == 1:
        texts = tuple(t.repeat_interleave(frames, 0) for t in texts)
    extra = {"noise_level": 20, "motion_score": 10} if config.family == "1.1" else {}
    positions = keyframe_positions(config.family, frames)
    conditions = network.prepare(
        *texts, torch.tensor([40]), positions=positions, keyframes=frames, frames_per_row=per_row, **extra
    )
    x, counts = draw(2 * frames, config.num_channels, 4, 6), []
    whole = network(x, conditions)
    for module in network.modules():
        if isinstance(module, blocks.ResNetBlock):
            module.resnet_blocks[0].register_forward_hook(lambda module, inputs, out: counts.append(len(inputs[0])))
    small_parts(size)
    assert relative(network(x, conditions), whole) < 1e-5
    assert min(counts) < 2 * frames
    assert size > 1 or set(counts) == {1}


def test_layers_of_a_host_are_called_once(small_parts):
    class HostConv(nn.Conv2d):
        calls = 0

        def forward(self, x):
            HostConv.calls += 1
            return super().forward(x)

    layers = nn.Sequential(HostConv(8, 32, 1), nn.SiLU(), HostConv(32, 8, 1))
    small_parts(1)
    add_feed_forward(layers, None, draw(5, 8, 3, 3))
    assert HostConv.calls == 2
