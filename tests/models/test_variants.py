from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support import tiny
from support.tiny import KEYFRAME_V10, KEYFRAME_V11, context, draw, relative, unet

from fusionframes.ff_kernels.bench.sizes import keyframe_parameters, variant_lines
from fusionframes.ff_kernels.checkpoints.conversion import write_checkpoint
from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.checkpoints.folding import fold
from fusionframes.ff_kernels.checkpoints.loading import load
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.errors import InputError, ShapeError
from fusionframes.ff_kernels.models import temporal_blocks
from fusionframes.ff_kernels.models.conditions import Step
from fusionframes.ff_kernels.models.configs import (
    MIXED_VARIANT,
    RELEASED_VARIANT,
    TEMPORAL_VARIANTS,
    VOLUME_VARIANT,
    WINDOWED_VARIANT,
)
from fusionframes.ff_kernels.models.keyframe_unet import keyframe_positions

FRAMES = 3


def network_of(variant, family=KEYFRAME_V10, **options):
    return unet(replace(family, temporal_variant=variant), **options)


def prepared(network, rows=2):
    config = network.config
    extra = {"noise_level": 20, "motion_score": 10} if config.family == "1.1" else {}
    positions = keyframe_positions(config.family, FRAMES)
    return network.prepare(*context(rows), torch.tensor([40]), positions=positions, keyframes=FRAMES, **extra)


def first(network, kind):
    return next(module for module in network.modules() if isinstance(module, kind))


def test_windowed_variant_adds_no_parameters_and_volume_variant_about_none():
    sizes = {variant: keyframe_parameters(variant) for variant in TEMPORAL_VARIANTS}
    # Release 1.0, counted on the authors' class.
    assert sizes[RELEASED_VARIANT] == (4_143_739_012, 1_105_176_192)
    assert sizes[WINDOWED_VARIANT] == sizes[RELEASED_VARIANT]
    spatial = {total - temporal for total, temporal in sizes.values()}
    assert len(spatial) == 1
    assert abs(sizes[VOLUME_VARIANT][0] / sizes[RELEASED_VARIANT][0] - 1) < 1e-3


@pytest.mark.parametrize("reduction", [3.75, 4.0, 4.5, 4.75, 5.0])
def test_volume_reduction_is_the_nearest_to_the_released_count(monkeypatch, reduction):
    released, chosen = (keyframe_parameters(variant)[0] for variant in (RELEASED_VARIANT, VOLUME_VARIANT))
    monkeypatch.setattr(temporal_blocks, "VOLUME_REDUCTION", reduction)
    assert abs(chosen - released) < abs(keyframe_parameters(VOLUME_VARIANT)[0] - released)


def test_windowed_variant_has_the_keys_and_shapes_of_the_released_one():
    shapes = [{k: v.shape for k, v in network_of(v).state_dict().items()} for v in (RELEASED_VARIANT, WINDOWED_VARIANT)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("variant", TEMPORAL_VARIANTS)
@pytest.mark.parametrize("family", [KEYFRAME_V10, KEYFRAME_V11], ids=["v10", "v11"])
def test_every_variant_mixes_the_frames_of_a_clip_and_no_other(variant, family):
    network = network_of(variant, family)
    x, conditions = draw(2 * FRAMES, family.num_channels, 4, 8), prepared(network)
    changed = x.clone()
    changed[-1] += 1
    moved = (network(changed, conditions) - network(x, conditions)).flatten(1).norm(dim=1)
    assert (moved[:FRAMES] == 0).all()
    assert (moved[FRAMES:] > 0).all()


@pytest.mark.parametrize("variant", TEMPORAL_VARIANTS)
def test_every_variant_folds_to_the_same_function(variant):
    network = network_of(variant).double()
    x = draw(2 * FRAMES, 4, 4, 8).double()
    texts = (context(2)[0].double(), context(2)[1])
    told = {"positions": keyframe_positions("1.0", FRAMES), "keyframes": FRAMES}
    expected = network(x, network.prepare(*texts, torch.tensor([40]), **told))
    fold(network)
    assert relative(network(x, network.prepare(*texts, torch.tensor([40]), **told)), expected) < 1e-6


@pytest.mark.parametrize("variant", TEMPORAL_VARIANTS)
def test_image_mode_of_every_variant_sees_one_sample_alone(variant):
    network = network_of(variant, KEYFRAME_V11)
    x = draw(2, 9, 4, 4)
    both = network(x, network.prepare(*context(2), torch.tensor([40]), positions=None))
    alone = network.prepare(*(t[1:] for t in context(2)), torch.tensor([40]), positions=None)
    assert relative(network(x[1:], alone), both[1:]) < 1e-5


def windows_by_hand(attention, x, frames):
    """Attention of every position to the four of its window in all frames, one query at a time."""
    N, C, H, W = x.shape
    heads, width = attention.heads, C // attention.heads
    out = torch.zeros_like(x)
    for clip in range(N // frames):
        samples = x[clip * frames : (clip + 1) * frames]
        for top in range(0, H, 2):
            for left in range(0, W, 2):
                window = samples[:, :, top : top + 2, left : left + 2]  # [T, C, 2, 2]
                tokens = window.permute(0, 2, 3, 1).reshape(-1, C)
                layers = (attention.to_query, attention.to_key, attention.to_value)
                query, key, value = (tokens @ layer.weight.T for layer in layers)
                mixed = torch.zeros_like(query)
                for head in range(heads):
                    part = slice(head * width, (head + 1) * width)
                    weights = (query[:, part] @ key[:, part].T / width**0.5).softmax(dim=-1)
                    mixed[:, part] = weights @ value[:, part]
                mixed = (mixed @ attention.output_layer.weight.T).reshape(frames, 2, 2, C).permute(0, 3, 1, 2)
                out[clip * frames : (clip + 1) * frames, :, top : top + 2, left : left + 2] = mixed
    return out


@pytest.mark.parametrize("size", [(2, 2), (4, 6)], ids=["one_window", "not_square"])
def test_windowed_attention_equals_the_sums_written_out_in_float64(size):
    attention = first(network_of(WINDOWED_VARIANT), temporal_blocks.WindowedSelfAttention).double()
    x = draw(2 * FRAMES, attention.to_query.in_features, *size).double()
    expected = windows_by_hand(attention, x, FRAMES)
    assert relative(attention(x, FRAMES), expected) < 1e-12
    assert relative(attention(x, FRAMES, x), expected + x) < 1e-12


def test_windows_of_one_position_value_equal_the_attention_over_time():
    # Four equal positions in each window change no softmax average, so both attentions must agree.
    released, windowed = (network_of(variant).double() for variant in (RELEASED_VARIANT, WINDOWED_VARIANT))
    blocks = [first(network, temporal_blocks.TemporalSelfAttention) for network in (released, windowed)]
    small = draw(FRAMES, blocks[0].to_query.in_features, 2, 2).double()
    x = F.interpolate(small, scale_factor=2, mode="nearest")
    assert relative(blocks[1](x, FRAMES), blocks[0](x, FRAMES)) < 1e-12


def test_volume_block_equals_conv3d_between_linear_layers_in_float64():
    network = network_of(VOLUME_VARIANT).double()
    block = first(network, temporal_blocks.TemporalResNetBlock)
    conditions = network.prepare(
        context(2)[0].double(), context(2)[1], torch.tensor([40]), positions=keyframe_positions("1.0", FRAMES),
        keyframes=FRAMES,
    )  # fmt: skip
    step = Step(conditions, 0)
    convs = [conv for _, _, conv in block.temporal_resnet_blocks]
    assert [tuple(conv.kernel_size) for conv in convs] == [(1, 1, 1), (3, 3, 3), (3, 3, 3), (1, 1, 1)]
    assert convs[0].out_channels < convs[0].in_channels / 2
    x = draw(2 * FRAMES, convs[0].in_channels, 4, 4).double()
    out = x
    for norm, _, conv in block.temporal_resnet_blocks:
        clips = F.silu(norm(out, step)).unflatten(0, (2, FRAMES)).transpose(1, 2)
        padding = tuple(k // 2 for k in conv.kernel_size)
        out = F.conv3d(clips, conv.weight, conv.bias, padding=padding).transpose(1, 2).flatten(0, 1)
    assert relative(block(x, step), x + out) < 1e-12


def test_mixed_convolution_is_a_convolution_over_time_behind_every_spatial_one():
    network = network_of(MIXED_VARIANT)
    assert not any(isinstance(m, temporal_blocks.TemporalResNetBlock) for m in network.modules())
    block = first(network, temporal_blocks.MixedConvBlock).double()
    network.double()
    conditions = network.prepare(
        context(1)[0].double(), context(1)[1], torch.tensor([40]), positions=keyframe_positions("1.0", FRAMES),
        keyframes=FRAMES,
    )  # fmt: skip
    step = Step(conditions, 0)
    x = draw(FRAMES, block.projection.in_channels, 4, 4).double()
    spatial = block.projection(F.silu(block.group_norm(x, step)))
    weight, bias = block.temporal_projection.weight, block.temporal_projection.bias
    expected = F.conv3d(spatial.transpose(0, 1)[None], weight, bias, padding=(1, 0, 0))[0].transpose(0, 1)
    assert relative(block(x, step), expected) < 1e-12
    residuals = [m for m in network.modules() if type(m).__name__ == "ResNetBlock"]
    assert all(isinstance(b, temporal_blocks.MixedConvBlock) for r in residuals for b in r.resnet_blocks)


def test_windowed_variant_needs_sides_that_windows_fill_at_the_smallest_level():
    network = network_of(WINDOWED_VARIANT)
    with pytest.raises(ShapeError, match="multiples of 4"):
        network(draw(2 * FRAMES, 4, 4, 6), prepared(network))


@pytest.mark.parametrize("variant", TEMPORAL_VARIANTS)
def test_saved_variant_is_found_again_from_metadata_and_where_possible_from_keys(tmp_path, variant):
    config = replace(KEYFRAME_V10, temporal_variant=variant)
    network = tiny.unet(config)
    path = tmp_path / "variant.safetensors"
    write_checkpoint(path, Kind("keyframe", "1.0", config), network.state_dict(), None)
    loaded = load(path)
    assert loaded.kind.config == config
    x = draw(2 * FRAMES, 4, 4, 8)
    assert relative(loaded.network(x, prepared(loaded.network)), network(x, prepared(network))) < 1e-5
    torch.save({"unet": dict(network.state_dict())}, tmp_path / "plain.pt")
    told = {"head_dim": config.head_dim, "groups": config.groups}
    found = load(tmp_path / "plain.pt", overrides=told).kind.config.temporal_variant
    assert found == (RELEASED_VARIANT if variant == WINDOWED_VARIANT else variant)
    # Metadata and callers may tell what keys cannot show, and nothing else.
    as_windowed = load(tmp_path / "plain.pt", overrides={**told, "temporal_variant": WINDOWED_VARIANT}).kind.config
    has_its_keys = variant in (RELEASED_VARIANT, WINDOWED_VARIANT)
    assert as_windowed.temporal_variant == (WINDOWED_VARIANT if has_its_keys else variant)


def test_unknown_variant_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'Conv2d'.*Conv1dAttn1dLayers.*Conv1dAttn3dBlocks"):
        replace(KEYFRAME_V10, temporal_variant="Conv2d")
    with pytest.raises(InputError, match="'Conv2d'"):
        variant_lines("Conv2d")


def test_info_variant_prints_the_counts_of_all_or_one(capsys):
    assert main(["info", "--variant"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(TEMPORAL_VARIANTS)
    assert "4,143,739,012" in lines[2]
    assert main(["info", "--variant", VOLUME_VARIANT]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
