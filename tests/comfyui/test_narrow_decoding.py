"""Latents of the presets balanced and fast in MoVQ Decode: the command line's frames, and float32 for all others."""

import importlib
from types import SimpleNamespace

import pytest
import torch

MARK = "fusionframes_narrow_decoder"
SEED, PROMPT = 7, "a large red circle moves up"


@pytest.fixture(scope="module")
def folded(core):
    names = ("fusionframes_demo_keyframes.safetensors", "fusionframes_demo_interpolation.safetensors")
    with torch.inference_mode():
        loaded = [core.run("FusionFramesLoadModel", model_name=name, layers="folded")[0] for name in names]
    return SimpleNamespace(model=loaded[0], interpolation=loaded[1])


@pytest.fixture(autouse=True)
def quick(core, monkeypatch):
    """A device that is faster in bfloat16."""
    for name in ("ff_kernels.pipeline.needs", "nodes.adapters.narrow"):
        monkeypatch.setattr(core.module(name), "quick_dtypes", lambda device: (torch.bfloat16,))


@pytest.fixture(scope="module")
def small(core):
    return core.run("FusionFramesEmptyLatent", keyframes=3, preset="64 x 64, demo")[0]


def keyframes_of(core, folded, prompts, small, preset, **options):
    return core.run(
        "FusionFramesKeyframeSampler", model=folded.model, positive=prompts[0], negative=prompts[1], latent=small,
        seed=SEED, guidance_scale=2.0, preset=preset, **options,
    )[0]  # fmt: skip


def video_of(core, folded, latent, preset, **options):
    return core.run(
        "FusionFramesInterpolate", model=folded.interpolation, latent=latent, seed=SEED, guidance_scale=0.25, passes=1,
        preset=preset, **options,
    )[0]  # fmt: skip


def decode(core, vae, latent):
    return core.run("FusionFramesMoVQDecode", vae=vae, latent=latent)[0]


@pytest.fixture(scope="module")
def video(core, folded, prompts, small):
    return video_of(core, folded, keyframes_of(core, folded, prompts, small, "balanced"), "balanced")


@pytest.mark.parametrize("preset", ["balanced", "fast"])
def test_frames_of_a_preset_are_the_command_line_s_bit_for_bit(core, demo, folded, prompts, small, preset, caplog):
    pipeline = core.module("ff_kernels.demo.model").demo_pipeline()
    settings = core.module("ff_kernels.pipeline.settings").Settings(
        fps="medium", preset=preset, keyframes=3, guidance_scale=2.0, interpolation_guidance=0.25, seed=SEED
    )
    expected = pipeline.generate(PROMPT, settings)
    latent = video_of(core, folded, keyframes_of(core, folded, prompts, small, preset), preset)
    assert torch.equal(latent["samples"][0].transpose(0, 1), expected.latents)
    with caplog.at_level("INFO"):
        assert torch.equal(decode(core, demo.vae, latent), expected.frames)
    assert pipeline.networks.reports["movq"].phrase() in caplog.text
    assert "decoded in bfloat16" in caplog.text


def test_last_stage_says_how_the_latent_is_decoded(core, folded, prompts, small, video):
    custom = keyframes_of(core, folded, prompts, small, "custom", steps=2)
    fast = keyframes_of(core, folded, prompts, small, "fast")
    assert MARK not in custom
    assert fast[MARK]
    assert video_of(core, folded, custom, "fast")[MARK]
    assert MARK not in video_of(core, folded, fast, "custom", steps=2)
    assert MARK not in keyframes_of(core, folded, prompts, fast, "custom", steps=2)
    mask = torch.zeros(1, 9, 8, 8)
    mask[:, 1:4] = 1
    options = {"model": folded.interpolation, "latent": {**video, "noise_mask": mask}, "seed": SEED, "steps": 2}
    assert MARK not in core.run("FusionFramesMaskedInterpolate", **options)[0]
    assert core.run("FusionFramesMaskedInterpolate", **options, preset="fast")[0][MARK]


def test_latents_of_other_presets_and_core_s_decoder_stay_in_float32(core, demo, video):
    plain = {key: value for key, value in video.items() if key != MARK}
    exact = decode(core, demo.vae, plain)
    assert 0 < (decode(core, demo.vae, video) - exact).abs().max() < 0.02
    (frames,) = core.nodes.NODE_CLASS_MAPPINGS["VAEDecode"]().decode(demo.vae, video)
    assert torch.equal(frames, exact)


def test_16_bit_that_is_too_far_makes_way_for_float32(core, demo, video, monkeypatch, caplog):
    monkeypatch.setattr(core.module("ff_kernels.stages.narrow"), "LEAST_DB", float("inf"))
    exact = decode(core, demo.vae, {"samples": video["samples"]})
    with caplog.at_level("INFO"):
        assert torch.equal(decode(core, demo.vae, video), exact)
    assert "decoded in float32: on a first frame bfloat16 is " in caplog.text


def test_core_s_nodes_hand_the_mark_on_and_the_first_of_two_latents_counts(core, demo, folded, prompts, small, video):
    plain = {"samples": video["samples"]}
    # Core's own file of latent nodes cannot be imported first.
    importlib.import_module("comfy_extras.nodes_post_processing")
    batch, concat, cut = (core.extra("nodes_latent", name) for name in ("LatentBatch", "LatentConcat", "LatentCut"))
    (both,) = batch.execute(video, plain).args
    assert MARK not in batch.execute(plain, video).args[0]
    assert concat.execute(video, plain, "t").args[0][MARK]
    assert cut.execute(video, "t", 0, 4).args[0][MARK]
    assert torch.equal(decode(core, demo.vae, both), decode(core, demo.vae, video).repeat(2, 1, 1, 1))
    sample = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]().sample
    after, anew = (
        sample(folded.model, 1, 2, 3.0, "euler", "normal", *prompts, latent, 0.5)[0] for latent in (video, small)
    )
    assert after[MARK]
    assert MARK not in anew


def test_copy_is_made_once_and_forgotten_when_core_unloads_it(core, vae, video):
    management, cpu = importlib.import_module("comfy.model_management"), torch.device("cpu")
    frames = decode(core, vae, video)
    copy = vae.narrow.patcher
    assert vae.narrow.has(torch.bfloat16, cpu)
    assert any(entry.model is copy for entry in management.current_loaded_models)
    decode(core, vae, video)
    assert vae.narrow.patcher is copy
    loaded = [entry.model for entry in management.current_loaded_models if entry.model is not None]
    assert sum(part.model is copy.model for part in loaded) == 1
    management.unload_all_models()
    assert not vae.narrow.has(torch.bfloat16, cpu)
    assert all(parameter.is_meta for parameter in copy.model.parameters())
    assert torch.equal(decode(core, vae, video), frames)
    assert vae.narrow.patcher is not copy


@pytest.fixture
def vae(core):
    with torch.inference_mode():
        return core.run("FusionFramesLoadMoVQ", vae_name="fusionframes_demo_movq.safetensors")[0]


def test_another_16_bit_dtype_takes_the_place_of_the_one_before(core, vae, video, monkeypatch):
    cpu = torch.device("cpu")
    decode(core, vae, video)
    monkeypatch.setattr(core.module("nodes.adapters.narrow"), "quick_dtypes", lambda device: (torch.float16,))
    decode(core, vae, video)
    assert vae.narrow.has(torch.float16, cpu)
    assert not vae.narrow.has(torch.bfloat16, cpu)
