from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import (
    INTERPOLATION_V10,
    INTERPOLATION_V11,
    KEYFRAME_V10,
    KEYFRAME_V11,
    context,
    draw,
    relative,
    unet,
)
from torch import nn

from fusionframes.ff_kernels.errors import ShapeError
from fusionframes.ff_kernels.models.conditions import cut_context, sinusoid
from fusionframes.ff_kernels.models.keyframe_unet import keyframe_positions
from fusionframes.ff_kernels.ops import attend, temporal_conv_class

CONFIGS = [KEYFRAME_V10, KEYFRAME_V11, INTERPOLATION_V10, INTERPOLATION_V11]
IDS = ["keyframe_v10", "keyframe_v11", "interpolation_v10", "interpolation_v11"]
FRAMES = 3


def prepare(network, rows, per_row, timesteps):
    """Prepare `rows` texts for clips of three samples, one row per clip or per sample."""
    config = network.config
    texts = context(2)
    if per_row == 1:
        texts = tuple(t.repeat_interleave(FRAMES, 0) for t in texts)
    if config.stage == "interpolation":
        merge = torch.tensor([1.0, 0.0]) if config.family == "1.1" else None
        merge = merge.repeat_interleave(FRAMES) if merge is not None and per_row == 1 else merge
        return network.prepare(*texts, timesteps, num_gaps=FRAMES, gaps_per_row=per_row, skip_frames=3, merge=merge)
    extra = {"noise_level": 20, "motion_score": 10} if config.family == "1.1" else {}
    positions = keyframe_positions(config.family, FRAMES)
    return network.prepare(*texts, timesteps, positions=positions, keyframes=FRAMES, frames_per_row=per_row, **extra)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_one_row_per_clip_equals_one_row_per_sample(config):
    network, x, timesteps = unet(config), draw(2 * FRAMES, config.num_channels, 4, 6), torch.tensor([40])
    outs = [network(x, prepare(network, 2, per_row, timesteps)) for per_row in (FRAMES, 1)]
    assert relative(*outs) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_tables_of_many_steps_equal_those_of_one(config):
    network, x = unet(config), draw(2 * FRAMES, config.num_channels, 4, 4)
    many = prepare(network, 2, FRAMES, torch.tensor([980, 40, 0]))
    for step, timestep in enumerate((980, 40, 0)):
        single = prepare(network, 2, FRAMES, torch.tensor([timestep]))
        assert relative(network(x, many, step), network(x, single)) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_clips_of_a_batch_do_not_see_each_other(config):
    network, x = unet(config), draw(2 * FRAMES, config.num_channels, 4, 4)
    conditions = prepare(network, 2, FRAMES, torch.tensor([40]))
    changed = x.clone()
    changed[-1] += 1
    difference = (network(changed, conditions) - network(x, conditions)).flatten(1).norm(dim=1)
    assert (difference[:FRAMES] == 0).all()
    sees_time = config is not INTERPOLATION_V11  # its second row has every temporal merge switched off
    assert (difference[FRAMES : 2 * FRAMES - 1] > 0).all() == sees_time


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_float64_and_channels_last_agree_with_float32(config):
    network, x = unet(config), draw(2 * FRAMES, config.num_channels, 4, 4)
    out = network(x, prepare(network, 2, FRAMES, torch.tensor([40])))
    last = x.contiguous(memory_format=torch.channels_last)
    assert relative(network(last, prepare(network, 2, FRAMES, torch.tensor([40]))), out) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_every_weighted_layer_comes_from_operations(config):
    made = []

    def recording(name):
        base = getattr(nn, name)

        def start(self, *args, **kwargs):
            made.append(self)
            base.__init__(self, *args, **kwargs)

        return type(name, (base,), {"__init__": start})

    names = ("Linear", "Conv2d", "ConvTranspose2d", "Conv3d", "GroupNorm", "Embedding")
    network = unet(config, operations=SimpleNamespace(**{name: recording(name) for name in names}))
    weighted = [m for m in network.modules() if list(m.parameters(recurse=False)) and type(m).__module__ != "torch.nn"]
    layers = [m for m in weighted if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd, nn.GroupNorm, nn.Embedding))]
    assert layers
    assert {id(m) for m in layers} <= {id(m) for m in made}


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_meta_device_and_dtype_are_taken_at_construction(config):
    network = type(unet(config))(config, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in network.parameters()} == {("meta", torch.bfloat16)}


def test_image_mode_skips_temporal_blocks_and_uses_its_own_input_layer():
    network = unet(KEYFRAME_V11)
    x = draw(2, 9, 4, 4)
    conditions = network.prepare(*context(2), torch.tensor([40]), positions=None)
    alone = network.prepare(*(t[1:] for t in context(2)), torch.tensor([40]), positions=None)
    out = network(x, conditions)
    assert relative(network(x[1:], alone), out[1:]) < 1e-5
    network.image_in_layer.weight.zero_()
    assert relative(network(x, conditions), out) > 1e-3


def test_video_layer_is_used_for_a_clip_of_two_samples():
    # Release 1.1 would take the image layer for a batch of two; a branch run alone must not.
    network = unet(KEYFRAME_V11)
    texts = tuple(t[:1] for t in context(1))
    conditions = network.prepare(
        *texts, torch.tensor([40]), positions=torch.arange(2), keyframes=2, noise_level=20, motion_score=10
    )
    x = draw(2, 9, 4, 4)
    out = network(x, conditions)
    network.image_in_layer.weight.zero_()
    assert torch.equal(network(x, conditions), out)


def test_merge_zero_switches_time_off():
    network = unet(INTERPOLATION_V11)
    x, texts = draw(3, 20, 4, 4), context(1)
    options = {"num_gaps": 3, "skip_frames": 1}
    off = network.prepare(*texts, torch.tensor([99]), merge=torch.zeros(1), **options)
    alone = network.prepare(*texts, torch.tensor([99]), merge=torch.zeros(1), num_gaps=1, skip_frames=1)
    together = network(x, off)
    assert relative(torch.cat([network(part, alone) for part in x.split(1)]), together) < 1e-5
    on = network.prepare(*texts, torch.tensor([99]), merge=torch.ones(1), **options)
    assert relative(network(x, on), together) > 1e-3


@pytest.mark.parametrize("factors", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.0, 0.0)])
def test_merges_of_a_batch_are_those_of_each_row_alone(factors):
    network = unet(INTERPOLATION_V11)
    x, texts = draw(2 * FRAMES, 20, 4, 4), context(2)
    options = {"num_gaps": FRAMES, "skip_frames": 3}
    together = network(x, network.prepare(*texts, torch.tensor([99]), merge=torch.tensor(factors), **options))
    for i, factor in enumerate(factors):
        row = tuple(t[i : i + 1] for t in texts)
        alone = network.prepare(*row, torch.tensor([99]), merge=torch.tensor([factor]), **options)
        part = slice(i * FRAMES, (i + 1) * FRAMES)
        assert relative(together[part], network(x[part], alone)) < 1e-5


def test_temporal_layers_see_only_the_rows_that_mix():
    network = unet(INTERPOLATION_V11)
    conditions = network.prepare(
        *context(2), torch.tensor([99]), num_gaps=FRAMES, skip_frames=3, merge=torch.tensor([1.0, 0.0])
    )
    clips = []
    for module in network.modules():
        if isinstance(module, temporal_conv_class(nn.Conv3d)):
            module.register_forward_hook(lambda module, inputs, out: clips.append(len(inputs[0])))
    network(draw(2 * FRAMES, 20, 4, 4), conditions)
    assert clips
    assert set(clips) == {1}


def test_wrong_shape_names_what_is_expected():
    network = unet(KEYFRAME_V10)
    conditions = prepare(network, 2, FRAMES, torch.tensor([40]))
    with pytest.raises(ShapeError, match=r"\[6, 4, h, w\].*\[6, 4, 5, 4\]"):
        network(draw(6, 4, 5, 4), conditions)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(2, 9), st.integers(1, 9), st.integers(0, 5))
def test_cut_context_gives_the_attention_of_the_full_mask(rows, length, valid, seed):
    valid = min(valid, length)
    mask = (torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 0.6).long()
    mask[:, valid:] = 0
    # Masked tokens are zero, as the projection leaves them; a row without a valid token is all zero.
    tokens, query = draw(rows, length, 8, seed=seed) * mask[..., None], draw(rows, 4, 8, seed=seed + 1)
    scores = query @ tokens.transpose(1, 2) / 8**0.5
    expected = scores.masked_fill(mask[:, None] == 0, -torch.finfo(torch.float32).max).softmax(-1) @ tokens
    cut, kept = cut_context(tokens, mask)
    assert torch.allclose(attend(query, cut, cut, 1, kept), expected, atol=1e-5)
    assert cut.shape[1] <= length


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 7))
def test_temporal_conv_equals_conv3d(kernel, frames, places):
    layer = temporal_conv_class(nn.Conv3d)(4, 6, (kernel, 1, 1), padding=(kernel // 2, 0, 0), dtype=torch.float64)
    x = draw(2, 4, frames, places).double()
    expected = F.conv3d(x[..., None], layer.weight, layer.bias, padding=(kernel // 2, 0, 0))[..., 0]
    assert torch.allclose(layer(x), expected, atol=1e-12)


def test_sinusoid_is_sines_then_cosines_with_divisor_one_less():
    embedded = sinusoid(torch.tensor([0, 7]), 8)
    assert torch.equal(embedded[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    assert embedded[1, 3].item() == pytest.approx(torch.sin(torch.tensor(7 / 10000)).item(), rel=1e-4)


def test_keyframe_positions_follow_the_release():
    assert keyframe_positions("1.0", 15).tolist() == list(range(0, 180, 12))
    assert keyframe_positions("1.1", 12).tolist() == list(range(12))
