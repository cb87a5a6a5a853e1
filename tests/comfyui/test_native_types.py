"""Our MODEL, CLIP and VAE in core's own samplers and nodes."""

from types import SimpleNamespace

import pytest
import torch
from support.core_start import start_noise
from support.graphs import windowed

from fusionframes.ff_kernels.demo.evaluate import true_clips
from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings

STEPS = 6


@pytest.fixture(scope="module")
def sampled(core, demo, prompts):
    """Keyframes of the one-node path at the released 50 steps."""
    empty = core.run("FusionFramesEmptyLatent", width=64, height=64, keyframes=5, vae=demo.vae)[0]
    return sample(core, demo, prompts, empty, steps=50)


def sample(core, demo, prompts, latent, steps=STEPS, seed=7, **options):
    return core.run(
        "FusionFramesKeyframeSampler",
        model=demo.model, positive=prompts[0], negative=prompts[1], latent=latent, seed=seed, steps=steps,
        guidance_scale=2.0, **options,
    )[0]  # fmt: skip


def test_graph_gives_the_frames_of_the_command_line(core, demo, sampled):
    pipeline = demo_pipeline()
    settings = pipeline.resolve(Settings(fps="medium", seed=7, steps=50, guidance_scale=2.0))
    text = pipeline.encode_text(["a large red circle moves up"])
    keyframes = pipeline.sample_keyframes(text, settings)
    assert (sampled["samples"] - keyframes.transpose(1, 2)).abs().max() < 1e-4
    expected = pipeline.decode(pipeline.interpolate(keyframes, settings, passes=1)[0], settings)
    video, fps = core.run(
        "FusionFramesInterpolate", model=demo.interpolation, latent=sampled, seed=7, steps=50, guidance_scale=0.25,
        passes=1, fps=2.0,
    )  # fmt: skip
    assert fps == 8.0
    assert torch.equal(video["samples"][:, :, ::4], sampled["samples"])
    (frames,) = core.run("FusionFramesMoVQDecode", vae=demo.vae, latent=video)
    assert frames.shape == (17, 64, 64, 3)
    assert (frames - expected).abs().max() < 2e-3


def test_custom_sampler_agrees_with_the_keyframe_sampler(core, demo, prompts, sampled, latent):
    """Same start, same levels, same ancestral noise; core's cfg is w + 1."""
    samplers = __import__("comfy.samplers", fromlist=["CFGGuider"])
    noise = start_noise(core, latent["samples"].shape, 7)
    guider = samplers.CFGGuider(demo.model)
    guider.set_conds(*prompts)
    guider.set_cfg(3.0)
    (sigmas,) = core.run("FusionFramesSchedule", model=demo.model, steps=50)
    (sampler,) = core.run("FusionFramesDDPM")
    out = guider.sample(noise, latent["samples"], sampler, sigmas, seed=7)
    assert (out - sampled["samples"]).abs().max() < 1e-3


def test_cores_own_ddpm_agrees_with_the_keyframe_sampler(core, demo, prompts, sampled, latent):
    samplers = __import__("comfy.samplers", fromlist=["CFGGuider"])
    noise = core.module("ff_kernels.sampling.noise")
    shape = latent["samples"].shape
    source = noise.SeededNoise(noise.stage_seeds(7, 1, noise.KEYFRAMES))

    def draw(*_):
        return source.normal((5, *shape[1:2], *shape[3:])).unflatten(0, (1, 5)).transpose(1, 2)

    start = draw()
    guider = samplers.CFGGuider(demo.model)
    guider.set_conds(*prompts)
    guider.set_cfg(3.0)
    (sigmas,) = core.run("FusionFramesSchedule", model=demo.model, steps=50)
    sampler = samplers.ksampler("ddpm", {"noise_sampler": draw})
    out = guider.sample(start, latent["samples"], sampler, sigmas, seed=7)
    assert (out - sampled["samples"]).abs().max() < 2e-3


def test_schedule_tells_the_network_the_released_timesteps(core, demo):
    (sigmas,) = core.run("FusionFramesSchedule", model=demo.model, steps=50)
    sampling = demo.model.get_model_object("model_sampling")
    assert sampling.timestep(sigmas[:-1]).tolist() == list(range(980, -1, -20))
    assert sampling.sigma_max.item() == pytest.approx(sigmas[0].item(), rel=1e-6)
    assert sigmas[-1] == 0


def test_every_core_sampler_runs_in_ksampler(core, demo, prompts, latent):
    samplers = __import__("comfy.samplers", fromlist=["KSampler"]).KSampler.SAMPLERS
    ksampler = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]()
    for name in samplers:
        (out,) = ksampler.sample(demo.model, 1, 3, 3.0, name, "normal", *prompts, latent, 1.0)
        assert out["samples"].shape == latent["samples"].shape, name
        assert torch.isfinite(out["samples"]).all(), name


def test_every_core_scheduler_runs_in_ksampler(core, demo, prompts, latent):
    schedulers = __import__("comfy.samplers", fromlist=["KSampler"]).KSampler.SCHEDULERS
    ksampler = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]()
    for name in schedulers:
        (out,) = ksampler.sample(demo.model, 1, 3, 3.0, "euler", name, *prompts, latent, 1.0)
        assert torch.isfinite(out["samples"]).all(), name


def test_clip_text_encode_gives_what_our_node_gives(core, demo, prompts):
    encode = core.nodes.NODE_CLASS_MAPPINGS["CLIPTextEncode"]()
    ((tensor, options),) = encode.encode(demo.clip, "a large red circle moves up")[0]
    assert torch.equal(tensor, prompts[0][0][0])
    assert torch.equal(options["attention_mask"], prompts[0][0][1]["attention_mask"])


def test_empty_clip_text_encode_is_the_null_text(core, demo, prompts, latent):
    (empty,) = core.nodes.NODE_CLASS_MAPPINGS["CLIPTextEncode"]().encode(demo.clip, "")
    calls = []
    prepare = demo.model.model.diffusion_model.prepare

    def spy(context, *args, **kwargs):
        calls.append(context)
        return prepare(context, *args, **kwargs)

    demo.model.model.diffusion_model.prepare = spy
    try:
        core.nodes.NODE_CLASS_MAPPINGS["KSampler"]().sample(
            demo.model, 1, 1, 3.0, "euler", "normal", prompts[0], empty, latent, 1.0
        )
    finally:
        del demo.model.model.diffusion_model.prepare
    null = demo.model.model.null_embedding
    assert any(torch.allclose(row[0], null) for context in calls for row in context)


def test_batch_of_latents_gives_the_clips_of_the_following_seeds(core, demo, prompts, latent):
    pair = {**latent, "samples": latent["samples"].repeat(2, 1, 1, 1, 1)}
    both = sample(core, demo, prompts, pair, seed=3)["samples"]
    second = sample(core, demo, prompts, latent, seed=4)["samples"]
    assert (both[1:] - second).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_weights_stay_close_to_float32(core, demo, prompts, latent, dtype):
    model = core.run("FusionFramesLoadModel", model_name="fusionframes_demo_keyframes.safetensors", weight_dtype=dtype)[
        0
    ]
    assert model.model.diffusion_model.in_layer.weight.dtype == getattr(torch, dtype)
    exact = sample(core, demo, prompts, latent)["samples"]
    near = sample(core, SimpleNamespace(model=model), prompts, latent)["samples"]
    assert (near - exact).pow(2).mean().sqrt() < 0.1 * exact.std()


def test_vae_nodes_of_core_decode_and_encode(core, demo, sampled):
    mapping = core.nodes.NODE_CLASS_MAPPINGS
    (frames,) = mapping["VAEDecode"]().decode(demo.vae, sampled)
    (ours,) = core.run("FusionFramesMoVQDecode", vae=demo.vae, latent=sampled)
    assert frames.shape == (5, 64, 64, 3)
    assert (frames - ours).abs().max() < 1e-5
    (tiled,) = mapping["VAEDecodeTiled"]().decode(demo.vae, sampled, 64, 0, 64, 8)
    assert tiled.shape == frames.shape
    truth = true_clips(1, 5)[0].movedim(1, -1)
    (latent,) = mapping["VAEEncode"]().encode(demo.vae, truth)
    assert latent["samples"].shape == sampled["samples"].shape
    (again,) = mapping["VAEDecode"]().decode(demo.vae, latent)
    assert (again - truth).pow(2).mean() < 1e-3


def test_previews_show_every_step(core, demo, prompts, latent, monkeypatch):
    preview = __import__("latent_preview")
    shown = []

    class Previewer(preview.Latent2RGBPreviewer):
        def decode_latent_to_preview_image(self, kind, x0):
            shown.append(super().decode_latent_to_preview_image(kind, x0)[1].size)
            return None

    space = demo.model.model.latent_format
    monkeypatch.setattr(
        preview, "get_previewer", lambda *_: Previewer(space.latent_rgb_factors, space.latent_rgb_factors_bias)
    )
    sample(core, demo, prompts, latent)
    assert shown == [(16, 16)] * STEPS


def test_lora_on_core_names_changes_the_result(core, demo, prompts, latent):
    key = "diffusion_model.in_layer.weight"
    weight = demo.model.model.diffusion_model.in_layer.weight
    patched = demo.model.clone()
    assert patched.add_patches({key: (torch.ones_like(weight),)}, 0.1) == [key]
    before = sample(core, demo, prompts, latent)["samples"]
    changed = sample(core, SimpleNamespace(model=patched), prompts, latent)["samples"]
    after = sample(core, demo, prompts, latent)["samples"]
    assert (changed - before).abs().max() > 1e-2
    assert torch.equal(before, after)


@pytest.mark.parametrize("frames", [12, 64])
def test_context_windows_sample_long_clips(core, demo, prompts, frames):
    model = windowed(core, demo.model, 5, 2)
    latent = core.run("FusionFramesEmptyLatent", width=64, height=64, keyframes=frames, vae=demo.vae)[0]
    ksampler = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]()
    (out,) = ksampler.sample(model, 1, 2, 3.0, "euler", "normal", *prompts, latent, 1.0)
    assert out["samples"].shape[2] == frames
    assert torch.isfinite(out["samples"]).all()


def test_noise_mask_keeps_known_frames_in_ksampler(core, demo, prompts, sampled):
    mask = torch.ones(1, 1, 5, 16, 16)
    mask[:, :, ::2] = 0
    ksampler = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]()
    (out,) = ksampler.sample(demo.model, 1, 4, 3.0, "ddpm", "normal", *prompts, {**sampled, "noise_mask": mask}, 1.0)
    # Core's last step multiplies by sigma and divides again.
    assert (out["samples"][:, :, ::2] - sampled["samples"][:, :, ::2]).abs().max() < 1e-5
    assert not torch.equal(out["samples"][:, :, 1], sampled["samples"][:, :, 1])
