"""Core's U-Net patches in the engine's U-Net, without core."""

import pytest
import torch
from support.no_core import adapter
from support.tiny import KEYFRAME_V10, context, draw, relative, unet

from fusionframes.ff_kernels.models.hooks import NO_HOOKS
from fusionframes.ff_kernels.models.keyframe_unet import keyframe_positions
from fusionframes.ff_kernels.ops import attend

patches = adapter("patches")
FRAMES, SIDE = 3, 8
TEXT, MASK = context(2)


@pytest.fixture(scope="module")
def network():
    return unet(KEYFRAME_V10).eval()


def run(network, options=None, **transformer_options):
    """Two branches of a clip through the network, with what core would hand it."""
    options = {"cond_or_uncond": [0, 1], **transformer_options}
    hooks = patches.hooks_of(options, network.config, TEXT, MASK, attend)
    positions = keyframe_positions("1.0", FRAMES)
    with torch.no_grad():
        conditions = network.prepare(TEXT, MASK, torch.tensor([500]), positions=positions, keyframes=FRAMES)
        x = draw(2 * FRAMES, 4, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        return network(x, conditions, 0, hooks)


def run_with(network, **named):
    return run(network, patches={name: [patch] for name, patch in named.items()})


def test_a_run_without_patches_has_no_hooks(network):
    options = {"patches": {"double_block": [None], "attn1_patch": []}, "patches_replace": {"dit": {}}}
    assert patches.hooks_of(options, network.config, TEXT, MASK, attend) is NO_HOOKS


def test_patches_that_hand_everything_back_change_nothing(network):
    same = {
        "input_block_patch": lambda h, options: h,
        "input_block_patch_after_skip": lambda h, options: h,
        "output_block_patch": lambda h, skip, options: (h, skip),
        "attn1_patch": lambda q, k, v, extra: (q, k, v),
        "attn1_output_patch": lambda out, extra: out,
        "attn2_patch": lambda q, k, v, extra: (q, k, v),
        "attn2_output_patch": lambda out, extra: out,
    }
    assert relative(run_with(network, **same), run(network)) < 1e-5


@pytest.mark.parametrize("name", patches.READ_PATCHES)
def test_every_patch_that_is_said_to_be_read_is_read(network, name):
    doubled = {
        "output_block_patch": lambda h, skip, options: (h * 2, skip),
        "attn1_patch": lambda q, k, v, extra: (q, k, v * 2),
        "attn2_patch": lambda q, k, v, extra: (q, k, v * 2),
    }
    patch = doubled.get(name, lambda h, options: h * 2)
    assert relative(run_with(network, **{name: patch}), run(network)) > 1e-3


def test_blocks_are_numbered_as_core_numbers_them(network):
    seen = []
    run_with(
        network,
        input_block_patch=lambda h, options: seen.append(options["block"]) or h,
        output_block_patch=lambda h, skip, options: (
            seen.append((*options["block"], h.shape == skip.shape)) or (h, skip)
        ),
    )
    # The first layer, two pairs in each of two levels; one skip, between the two upper levels.
    assert seen == [*[("input", number) for number in range(5)], ("output", 0, True)]


def test_the_middle_attention_can_be_replaced_by_its_values(network):
    calls = []

    def values(q, k, v, extra):
        calls.append((extra["block"], extra["n_heads"], q.shape == v.shape))
        return v

    changed = run(network, patches_replace={"attn1": {("middle", 0): values}})
    assert calls == [(("middle", 0), 2, True)]
    assert relative(changed, run(network)) > 1e-4
    same = run(network, patches_replace={"attn1": {("middle", 0, 0): lambda q, k, v, e: attend(q, k, v, e["n_heads"])}})
    assert relative(same, run(network)) < 1e-5


@pytest.mark.parametrize("number", range(5))
def test_maps_shrunk_after_any_block_come_back_to_their_size(network, number):
    def shrink(h, options):
        small = torch.nn.functional.interpolate(h, scale_factor=0.5)
        return small if options["block"] == ("input", number) else h

    def widen(h, skip, options):
        return torch.nn.functional.interpolate(h, size=skip.shape[-2:]) if h.shape[2] != skip.shape[2] else h, skip

    for name in ("input_block_patch", "input_block_patch_after_skip"):
        out = run_with(network, **{name: shrink, "output_block_patch": widen})
        assert out.shape == (2 * FRAMES, 4, SIDE, SIDE)
        assert relative(out, run(network)) > 1e-3


def test_queries_may_be_cut_into_tiles(network):
    def tile(q, k, v, extra):
        return q.reshape(2 * len(q), -1, q.shape[-1]), k, v

    def join(out, extra):
        return out.reshape(len(out) // 2, -1, out.shape[-1])

    out = run_with(network, attn1_patch=tile, attn1_output_patch=join)
    assert relative(out, run(network)) > 1e-4


def test_original_shape_is_that_of_the_largest_attention(network):
    seen = {}
    run_with(network, attn1_patch=lambda q, k, v, extra: seen.update(extra, tokens=q.shape[1]) or (q, k, v))
    assert seen["original_shape"] == [2 * FRAMES, 4, SIDE // 2, SIDE // 2]
    assert seen["tokens"] == SIDE // 2 * SIDE // 2


def test_rows_of_one_token_are_filled_and_attend_alike():
    text, mask = context(2)
    mask[1] = 0
    mask[1, 0] = 1
    filled, valid = patches.fill_null_rows(text, mask)
    query = draw(2, 5, text.shape[-1], seed=3)
    assert valid is None or bool(valid[1].all())
    expected = attend(query[1:], text[1:, :1], text[1:, :1], 1)
    assert torch.allclose(attend(query, filled, filled, 1, valid)[1:], expected, atol=1e-6)


def test_what_nobody_reads_is_named():
    options = {
        "patches": {"attn1_patch": [1], "middle_block_after_patch": [1], "double_block": []},
        "patches_replace": {"attn1": {0: 1}, "dit": {0: 1}},
        "rope_options": {},
    }
    names = patches.unread(options, {"positive": [{"control": object()}], "negative": [{"control": None}]})
    assert names == ["middle_block_after_patch patch", "dit replacement", "rope options", "ControlNet"]
    assert patches.unread({}, {"positive": [{}]}) == []


def test_what_hangs_on_single_calls_only_is_said_once(network):
    said = []
    notice = patches.Notice(said.append)
    for _ in range(2):
        run(network, **{patches.NOTICE: notice, "patches_replace": {"dit": {("double_block", 0): None}}})
    assert said == ["FusionFrames U-Nets do not read: dit replacement; the result is the same without"]
