"""Batches of fine-tuning: one size at a time, half of them of the prior, text dropped, noise on what is shown."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import tiny

from fusionframes.ff_kernels.sampling.gaps import join_gaps
from fusionframes.ff_kernels.training.batches import GAP_WINDOW, Batches, Sample, pad_contexts

RNG = np.random.default_rng


def sample(folder, name, value, size=(4, 4), windows=2, tokens=3):
    """A clip of constant latents; its context is as constant."""
    path = folder / f"{name}.safetensors"
    gaps = torch.full((windows, GAP_WINDOW, 4, *size), value) + torch.arange(GAP_WINDOW)[:, None, None, None] / 64
    keyframes = torch.full((windows, 3, 4, *size), value).half()
    save_file({"keyframes": keyframes, "skip_3": gaps.half(), "skip_1": gaps.half()}, path)
    return Sample.of(path, torch.full((tokens, tiny.CONTEXT), value), 10)


def test_a_batch_has_one_size_and_every_size_its_share(tmp_path):
    samples = [sample(tmp_path, "a", 0.1), sample(tmp_path, "b", 0.2), sample(tmp_path, "c", 0.3, size=(2, 8))]
    draw, sizes = Batches(samples, [], tiny.KEYFRAME_V10), []
    for seed in range(60):
        latents = draw(RNG(seed), 3)[0]
        assert latents.shape[:3] == (3, 3, 4)
        sizes.append(tuple(latents.shape[3:]))
    assert 10 <= sizes.count((2, 8)) <= 30


def test_half_of_every_batch_shows_the_prior(tmp_path):
    draw = Batches([sample(tmp_path, "a", 0.25)], [sample(tmp_path, "b", 0.5)] * 9, tiny.KEYFRAME_V10)
    values = [draw(RNG(seed), 1)[0].unique().item() for seed in range(60)]
    assert set(values) == {0.25, 0.5}
    assert 18 <= values.count(0.25) <= 42
    for seed in range(10):
        rows = draw(RNG(seed), 4)[0].flatten(1)[:, 0].tolist()
        assert sorted(rows) == [0.25, 0.25, 0.5, 0.5]


def test_a_size_that_only_one_of_both_has_fills_its_batches(tmp_path):
    new, prior = sample(tmp_path, "a", 0.25), sample(tmp_path, "b", 0.5, size=(2, 8))
    draw = Batches([new], [prior], tiny.KEYFRAME_V10)
    shown = [draw(RNG(seed), 3)[0] for seed in range(40)]
    assert all(len(latents.unique()) == 1 for latents in shown)
    assert 10 <= sum(latents.shape[3] == 4 for latents in shown) <= 30


def test_text_goes_with_its_clip_and_is_dropped_at_its_rate(tmp_path):
    samples = [sample(tmp_path, "a", 0.25, tokens=2), sample(tmp_path, "b", 0.5, tokens=4)]
    draw, kept = Batches(samples, [], tiny.KEYFRAME_V10), []
    for seed in range(40):
        latents, noise, context, mask, lengths, keep, timesteps, bars = draw(RNG(seed), 8)
        for row in range(8):
            value = latents[row].unique().item()
            tokens = {0.25: 2, 0.5: 4}[value]
            assert mask[row].sum() == tokens
            assert lengths[row] == tokens + 1
            assert (context[row, :tokens] == value).all()
            assert not context[row, tokens:].any()
        kept.append(keep)
        assert noise.std() == pytest.approx(1, abs=0.2)
        assert ((bars > 0) & (bars < 1)).all()
        assert ((timesteps >= 0) & (timesteps < 1000)).all()
    assert torch.cat(kept).mean() == pytest.approx(0.9, abs=0.06)


def test_release_11_is_shown_a_noisy_first_frame_that_is_dropped_at_its_rate(tmp_path):
    clip = replace(sample(tmp_path, "a", 0.25), motion_score=40)
    draw = Batches([clip], [], tiny.KEYFRAME_V11)
    shown = []
    for seed in range(40):
        latents, *_, bars, condition, levels, scores = draw(RNG(seed), 4)
        assert condition.shape == (4, 3, 5, 4, 4)
        assert not condition[:, 1:].any()
        assert scores.tolist() == [40] * 4
        assert ((levels >= 0) & (levels <= 250)).all()
        mask = condition[:, 0, 4].mean(dim=(1, 2))
        assert set(mask.tolist()) <= {0.0, 1.0}
        assert not condition[mask == 0].any()
        assert (bars > 0).all()
        shown.append(mask)
        clean = (levels < 5) & (mask == 1)
        assert torch.allclose(condition[clean][:, 0, :4], latents[clean][:, 0], atol=0.6)
    assert torch.cat(shown).mean() == pytest.approx(0.9, abs=0.07)


@pytest.mark.parametrize("config", [tiny.INTERPOLATION_V10, tiny.INTERPOLATION_V11], ids=["1.0", "1.1"])
def test_gap_frames_join_to_the_window_they_were_cut_from(tmp_path, config):
    draw, clean = Batches([sample(tmp_path, "a", 0.25)], [], config), 0
    for seed in range(20):
        keyframes, inner, noise, *_, keep, skips, levels, timesteps, bars = draw(RNG(seed), 4)
        assert inner.shape == noise.shape == (4, 4, 12, 4, 4)
        assert set(skips.tolist()) <= {1, 3}
        assert ((bars >= 0) & (bars < 1)).all()
        assert timesteps.max() <= 999
        for row in np.flatnonzero(levels == 0):
            joined = join_gaps(keyframes[row : row + 1], inner[row])[0]
            assert torch.allclose(joined[:, 0, 0, 0], 0.25 + torch.arange(GAP_WINDOW) / 64, atol=1e-3)
            clean += 1
        assert torch.equal(keep, keep.round())
    assert clean > 10


def test_pad_contexts_ends_every_caption_with_a_zero_token():
    context, mask, lengths = pad_contexts([torch.ones(2, 3), torch.ones(4, 3)])
    assert context.shape == (2, 5, 3)
    assert mask.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    assert lengths.tolist() == [3, 5]
    assert context.sum().item() == 18
