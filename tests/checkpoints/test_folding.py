"""Folds are algebra: in float64 a folded network says what the unfolded one says."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import MOVQ, draw
from torch import nn

from fusionframes.ff_kernels.checkpoints import folding
from fusionframes.ff_kernels.checkpoints.folding import fold
from fusionframes.ff_kernels.models.configs import MoVQConfig, UNetConfig
from fusionframes.ff_kernels.models.interpolation_unet import InterpolationUNet
from fusionframes.ff_kernels.models.keyframe_unet import KeyframeUNet, keyframe_positions
from fusionframes.ff_kernels.models.movq import MoVQ
from fusionframes.ff_kernels.ops import temporal_conv_class
from fusionframes.ff_kernels.verify.cases import fill_weights

TINY = UNetConfig(
    "1.0", "keyframe", 4, 4, model_channels=16, init_channels=8, time_embed_dim=16, context_dim=12, groups=4,
    head_dim=8, dim_mult=(1, 2, 2), num_blocks=(2, 1, 2), add_cross_attention=(False, True, True),
    add_self_attention=(False, True, True), num_frames=5,
)  # fmt: skip
LIMIT = 1e-12
sides = st.integers(1, 5).map(lambda n: 2 * n)


def randomise(network):
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=max(parameter[0].numel(), 1) ** -0.5, generator=generator)
    return network.double().eval().requires_grad_(False)


def distance(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def conv(*args, **kwargs):
    return randomise(nn.Conv2d(*args, **kwargs))


@settings(deadline=None)
@given(sides, sides)
def test_conv_then_halve_is_one_convolution(height, width):
    first, second = conv(3, 5, 3, padding=1), conv(5, 5, 2, stride=2)
    x = draw(2, 3, height, width).double()
    assert distance(folding._conv_then_halve(first, second)(x), second(first(x))) < LIMIT


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6))
def test_double_then_conv_is_one_transposed_convolution_borders_included(height, width):
    first, second = randomise(nn.ConvTranspose2d(3, 3, 2, stride=2)), conv(3, 5, 3, padding=1)
    x = draw(2, 3, height, width).double()
    assert distance(folding._double_then_conv(first, second)(x), second(first(x))) < LIMIT


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6))
def test_nearest_then_conv_is_one_transposed_convolution(height, width):
    layer = conv(3, 3, 3, padding=1)
    x = draw(2, 3, height, width).double()
    expected = layer(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert distance(folding._nearest_then_conv(layer)(x), expected) < LIMIT


@pytest.mark.parametrize("frames", [1, 2, 5], ids=["one_frame_has_both_edges", "no_middle", "middle"])
def test_point_then_time_and_merge_are_one_convolution(frames):
    point = conv(3, 6, 1)
    time = randomise(temporal_conv_class(nn.Conv3d)(6, 6, (3, 1, 1), padding=(1, 0, 0)))
    merge = torch.tensor([0.3], dtype=torch.float64)
    x = draw(2, 3, frames, 7).double()
    inner = point(x)
    expected = 0.7 * inner + 0.3 * time(inner)
    folded = folding._point_then_time(point, folding._merge_into_conv(time, merge))
    assert distance(folded(x), expected) < LIMIT


def keyframes(config):
    net = randomise(KeyframeUNet(config))
    # In float64 no hoist may round: the tables are made in the dtype of the context.
    conditions = net.prepare(
        draw(2, 6, config.context_dim).double(), torch.ones(2, 6), torch.tensor([500, 20]),
        positions=keyframe_positions("1.0", 3), keyframes=3,
    )  # fmt: skip
    return net, (draw(6, config.num_channels, 8, 12).double(), conditions, 1)


def gaps(config):
    net = randomise(InterpolationUNet(config))
    conditions = net.prepare(
        draw(2, 2, config.context_dim).double(), torch.tensor([[1, 0], [1, 0]]), torch.tensor([500]),
        num_gaps=3, skip_frames=3,
    )  # fmt: skip
    return net, (draw(6, config.num_channels, 8, 12).double(), conditions, 0)


@pytest.mark.parametrize(
    "case",
    [
        lambda: keyframes(TINY),
        lambda: gaps(replace(TINY, stage="interpolation", num_channels=20, out_channels=12)),
    ],
    ids=["keyframe_v10", "interpolation_v10"],
)
def test_folded_unet_says_the_same(case):
    net, inputs = case()
    expected = net(*inputs)
    folded = fold(copy.deepcopy(net))
    assert distance(folded(*inputs), expected) < LIMIT
    assert len(list(folded.parameters())) < len(list(net.parameters()))


@pytest.mark.parametrize("temporal", [False, True], ids=["image", "video"])
def test_folded_movq_decodes_the_same(temporal):
    config = MoVQConfig(
        ch=8, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(8,), resolution=32, groups=4,
        temporal=temporal, temporal_attention_block=temporal, temporal_kernel_size=(3, 1, 1),
    )  # fmt: skip
    net = randomise(MoVQ(config))
    latents = draw(3, 4, 5, 4).double()
    expected = net.decode(latents)
    assert distance(fold(copy.deepcopy(net)).decode(latents), expected) < LIMIT


def test_layers_of_a_host_are_left_alone():
    class Host:
        Linear = type("Linear", (nn.Linear,), {})
        Conv2d = type("Conv2d", (nn.Conv2d,), {})
        Conv3d = type("Conv3d", (nn.Conv3d,), {})
        ConvTranspose2d = type("ConvTranspose2d", (nn.ConvTranspose2d,), {})
        GroupNorm, LayerNorm, Embedding = nn.GroupNorm, nn.LayerNorm, nn.Embedding

    net = KeyframeUNet(TINY, operations=Host)
    names = set(net.state_dict())
    assert set(fold(net).state_dict()) == names


@pytest.fixture
def winograd_from_two_channels(monkeypatch):
    """Small networks in float64 take the way of wide ones in float32."""
    monkeypatch.setattr(folding, "WINOGRAD_CHANNELS", 2)
    monkeypatch.setattr(folding, "_WINOGRAD_DTYPES", (torch.float64,))


@pytest.mark.parametrize("stage", [keyframes, gaps, None], ids=["keyframe_v10", "interpolation_v10", "movq"])
def test_network_through_winograd_says_the_same(stage, winograd_from_two_channels):
    config = MoVQConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), resolution=32, groups=4)
    net = randomise(MoVQ(config)) if stage is None else None
    if net is None:
        wide = TINY if stage is keyframes else replace(TINY, stage="interpolation", num_channels=20, out_channels=12)
        net, inputs = stage(wide)
    run = (lambda n: n.decode(draw(2, 4, 5, 4).double())) if stage is None else (lambda n: n(*inputs))
    folded = fold(copy.deepcopy(net))
    assert any(isinstance(module, folding.WinogradConv) for module in folded.modules())
    assert distance(run(folded), run(net)) < LIMIT


def test_only_wide_single_precision_on_a_processor_goes_through_winograd():
    def chosen(*channels, **kwargs):
        return folding.OWN.pays_with_winograd(nn.Conv2d(*channels, 3, padding=1, **kwargs))

    assert chosen(128, 256)
    assert not chosen(128, 64)
    assert not chosen(128, 256, dtype=torch.float16)
    assert not chosen(128, 256, device="meta")
    assert not chosen(128, 256, stride=2)


def test_weights_that_wait_are_folded_as_for_where_they_will_run(monkeypatch):
    monkeypatch.setattr(folding, "WINOGRAD_CHANNELS", 2)
    stored, moved = (MoVQ(MOVQ) for _ in range(2))
    fill_weights(stored, 0).half()
    moved.load_state_dict(stored.state_dict())
    expected = fold(moved.float()).state_dict()
    for device, count in (("cpu", 1), ("cuda", 0)):
        network = fold(copy.deepcopy(stored), folding.Target(torch.device(device), torch.float32))
        assert any(isinstance(module, folding.WinogradConv) for module in network.modules()) == bool(count)
        if count:
            assert all(torch.equal(value.float(), expected[name]) for name, value in network.state_dict().items())
