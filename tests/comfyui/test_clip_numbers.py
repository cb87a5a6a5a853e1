"""Batches taken apart and put together: clip i is the clip of seed + its number, in every sampler."""

import importlib

import pytest
import torch
from support.graphs import interpolated, keyframes, ksampler


@pytest.fixture(scope="module")
def batch(core, demo):
    latent = core.run("FusionFramesEmptyLatent", preset="64 x 64, demo", keyframes=5)[0]
    return core.nodes.NODE_CLASS_MAPPINGS["RepeatLatentBatch"]().repeat(latent, 3)[0]


def second(core, batch):
    return core.nodes.NODE_CLASS_MAPPINGS["LatentFromBatch"]().frombatch(batch, 1, 1)[0]


def custom(core, model, prompts, latent):
    (sigmas,) = core.run("FusionFramesSchedule", model=model, steps=4)
    cls = core.extra("nodes_custom_sampler", "SamplerCustom")
    run = getattr(cls, "execute", None) or getattr(cls(), "sample", None)
    out = run(model, True, 3, 1.2, *prompts, core.run("FusionFramesDDPM")[0], sigmas, latent)
    return getattr(out, "args", out)[0]["samples"]


@pytest.mark.parametrize("run", [keyframes, custom])
def test_a_clip_taken_out_of_a_batch_is_the_same_clip(core, demo, prompts, batch, run):
    whole = run(core, demo.model, prompts, batch)
    alone = run(core, demo.model, prompts, second(core, batch))
    assert (alone - whole[1:2]).abs().max() < 1e-4


@pytest.mark.parametrize("run", [keyframes, custom])
def test_fixed_seeds_give_one_clip_again_and_again(core, demo, prompts, batch, run):
    clips = run(core, demo.model, prompts, {**batch, "batch_index": [0, 0, 0]})
    assert torch.equal(clips[0], clips[1])
    assert torch.equal(clips[0], clips[2])


def test_interpolation_numbers_clips_too(core, demo, prompts, batch):
    frames = keyframes(core, demo.model, prompts, batch)
    whole = interpolated(core, demo.interpolation, {"samples": frames})
    alone = interpolated(core, demo.interpolation, {"samples": frames[1:2], "batch_index": [1]})
    assert (alone - whole[1:2]).abs().max() < 1e-4


def test_two_chained_interpolations_give_two_passes(core, demo):
    latent = {"samples": torch.randn(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    options = {"model": demo.interpolation, "seed": 3, "steps": 3}
    both = core.run("FusionFramesInterpolate", latent=latent, passes=2, **options)[0]
    first = core.run("FusionFramesInterpolate", latent=latent, passes=1, **options)[0]
    then = core.run("FusionFramesInterpolate", latent=first, passes=1, **options)[0]
    assert torch.equal(then["samples"], both["samples"])


def test_a_mask_repeated_for_every_clip_is_one_mask(core, demo, batch):
    frames = {"samples": torch.randn(2, 4, 5, 16, 16, generator=torch.Generator().manual_seed(0))}
    mask = torch.zeros(5, 16, 16)
    mask[1] = 1
    run = {"model": demo.interpolation, "seed": 1, "steps": 2}
    once = core.run("FusionFramesMaskedInterpolate", latent={**frames, "noise_mask": mask}, **run)[0]
    twice = core.run("FusionFramesMaskedInterpolate", latent={**frames, "noise_mask": mask.repeat(2, 1, 1)}, **run)[0]
    assert torch.equal(once["samples"], twice["samples"])


def test_one_sigma_gives_the_latent_back(core, demo, prompts, batch):
    guider = importlib.import_module("comfy.samplers").CFGGuider(demo.model)
    guider.set_conds(*prompts)
    (sampler,) = core.run("FusionFramesDDPM")
    latent = torch.randn(1, 4, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    out = guider.sample(torch.zeros_like(latent), latent, sampler, torch.tensor([0.0]), seed=1)
    assert torch.allclose(out, latent, atol=1e-6)


def test_ksampler_names_the_sides_that_fit(core, demo, prompts):
    with pytest.raises(ValueError, match=r"height expected a multiple of 2 latent positions, got 15: take 1[46]"):
        ksampler(core, demo.model, prompts, {"samples": torch.zeros(1, 4, 5, 15, 16)})


def test_widgets_with_a_default_may_be_left_out(core):
    for name, cls in core.nodes.NODE_CLASS_MAPPINGS.items():
        if name.startswith("FusionFrames"):
            required = cls.INPUT_TYPES().get("required", {})
            assert not [key for key, (_, *rest) in required.items() if rest and "default" in rest[0]], name
