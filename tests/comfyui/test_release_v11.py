"""Release 1.1 in core, with untrained weights: the engine's sampler and the same taken apart agree."""

from types import SimpleNamespace

import pytest
import torch
from support import release
from support.graphs import windowed

STEPS = 4


@pytest.fixture(scope="module")
def v11(core, tmp_path_factory):
    folder = tmp_path_factory.mktemp("v11")
    release.write(folder, "1.1")
    files = core.module("nodes.adapters.files")
    model = core.module("nodes.adapters.model")
    clip = core.module("nodes.adapters.clip")
    tokenizer = core.module("ff_kernels.stages.tokenizer").Tokenizer(folder / "spiece.model")

    def opened(name, *stages):
        return files.open_weights(folder / f"{name}.safetensors", stages, "file")

    projection = files.open_projection(folder / "t5.safetensors", "projection_name")
    return SimpleNamespace(
        model=model.load_model(opened("keyframe", "keyframe"), None),
        interpolation=model.load_model(opened("interpolation", "interpolation"), None),
        clip=clip.load_clip(opened("text_encoder", "text_encoder"), projection, tokenizer, None),
        vae=core.module("nodes.adapters.vae").MoVQVAE(opened("video_movq", "video_movq")),
    )


@pytest.fixture(scope="module")
def conditioned(core, v11):
    prompts = core.run("FusionFramesTextEncode", clip=v11.clip, prompt="a large red circle", negative_prompt="")
    picture = torch.rand(1, 40, 56, 3, generator=torch.Generator().manual_seed(0))
    return core.run(
        "FusionFramesImageToVideo", positive=prompts[0], negative=prompts[1], vae=v11.vae, image=picture, width=16,
        height=16, keyframes=3,
    )  # fmt: skip


def sample(core, model, conditioned, seed=5):
    positive, negative, latent = conditioned
    return core.run(
        "FusionFramesKeyframeSampler", model=model, positive=positive, negative=negative, latent=latent, seed=seed,
        steps=STEPS, guidance_scale=5.0, image_guidance=2.0,
    )[0]["samples"]  # fmt: skip


def test_dual_guider_agrees_with_the_keyframe_sampler(core, v11, conditioned):
    positive, negative, latent = conditioned
    noise = core.module("ff_kernels.sampling.noise")
    B, C, T, h, w = latent["samples"].shape
    start = noise.SeededNoise(noise.stage_seeds(5, 1, noise.KEYFRAMES)).normal((T, C, h, w))
    (guider,) = core.run(
        "FusionFramesDualGuider", model=v11.model, positive=positive, negative=negative, guidance_scale=5.0,
        image_guidance=2.0,
    )  # fmt: skip
    (sigmas,) = core.run("FusionFramesSchedule", model=v11.model, steps=STEPS)
    (sampler,) = core.run("FusionFramesDDPM")
    out = guider.sample(start.unflatten(0, (B, T)).transpose(1, 2), latent["samples"], sampler, sigmas, seed=5)
    expected = sample(core, v11.model, conditioned)
    # The told timesteps of 4 steps (750, 500, ..) are entries of the 50-step table as well.
    assert (out - expected).abs().max() < 2e-3


def test_one_keyframe_without_a_picture_draws_one_from_text(core, v11, conditioned):
    prompts = core.run("FusionFramesTextEncode", clip=v11.clip, prompt="a large red circle", negative_prompt="")
    latent = {"samples": torch.zeros(1, 4, 1, 8, 8)}
    out = sample(core, v11.model, (*prompts, latent))
    assert out.shape == (1, 4, 1, 8, 8)
    assert torch.isfinite(out).all()


def test_several_keyframes_without_a_picture_are_refused(core, v11):
    prompts = core.run("FusionFramesTextEncode", clip=v11.clip, prompt="a large red circle", negative_prompt="")
    latent = {"samples": torch.zeros(1, 4, 3, 8, 8)}
    with pytest.raises(ValueError, match=r"positive expected a first frame for 3 keyframes of release 1.1"):
        sample(core, v11.model, (*prompts, latent))


def test_dual_guider_without_a_picture_is_refused(core, v11):
    prompts = core.run("FusionFramesTextEncode", clip=v11.clip, prompt="a large red circle", negative_prompt="")
    with pytest.raises(ValueError, match="positive expected a first frame, got text only: connect FusionFrames Image"):
        core.run(
            "FusionFramesDualGuider", model=v11.model, positive=prompts[0], negative=prompts[1], guidance_scale=5.0,
            image_guidance=2.0,
        )  # fmt: skip


def test_interpolation_needs_a_prompt_and_keeps_keyframes(core, v11, conditioned):
    latent = {"samples": sample(core, v11.model, conditioned)}
    inputs = {"model": v11.interpolation, "latent": latent, "seed": 0, "steps": 2, "guidance_scale": 0.5}
    with pytest.raises(ValueError, match=r"positive expected a prompt for release 1.1, got none"):
        core.run("FusionFramesInterpolate", **inputs, passes=1, fps=2.0)
    video, _ = core.run("FusionFramesInterpolate", **inputs, passes=1, fps=2.0, positive=conditioned[0])
    assert torch.equal(video["samples"][:, :, ::4], latent["samples"])


def test_blended_seams_differ_from_released_ones_only_near_chunks(core, v11):
    latent = {"samples": torch.randn(1, 4, 12, 4, 4, generator=torch.Generator().manual_seed(0))}
    kinds = [
        core.run("FusionFramesMoVQDecode", vae=v11.vae, latent=latent, seams=s)[0] for s in ("as released", "blended")
    ]
    assert kinds[0].shape == kinds[1].shape == (12, 8, 8, 3)
    assert not torch.equal(*kinds)


def test_context_windows_cut_the_first_frame_condition(core, v11, conditioned):
    model = windowed(core, v11.model, 3, 1)
    positive, negative, _ = conditioned
    ksampler = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]()
    latent = {"samples": torch.zeros(1, 4, 7, 8, 8)}
    (out,) = ksampler.sample(model, 1, 2, 6.0, "euler", "normal", positive, negative, latent, 1.0)
    assert torch.isfinite(out["samples"]).all()


def test_first_frames_that_do_not_fit_the_clips_are_refused(core, v11, conditioned):
    positive, negative, latent = conditioned
    wrong = {"samples": latent["samples"].repeat(3, 1, 1, 1, 1)}
    many = [
        [[t, {**o, "fusionframes_first_frame": o["fusionframes_first_frame"].repeat(2, 1, 1, 1)}] for t, o in c]
        for c in (positive, negative)
    ]
    with pytest.raises(ValueError, match="one first frame or one for each of 3 clips, got 2"):
        sample(core, v11.model, (*many, wrong))


def test_what_hangs_on_the_network_takes_the_prompt_for_the_first_branch(core, v11, conditioned):
    seen = []

    def wrapper(executor, x, timesteps, context, y, control, options, **conditions):
        shown = conditions["first_frame"][:, -1, 0, 0, 0].tolist()
        seen.extend(zip(options["cond_or_uncond"], shown, context, strict=True))
        return executor(x, timesteps, context, y, control, options, **conditions)

    extension = __import__("comfy.patcher_extension", fromlist=["WrappersMP"])
    model = v11.model.clone()
    model.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    own = sample(core, v11.model, conditioned)
    assert (sample(core, model, conditioned) - own).abs().max() < 1e-2 * own.std()
    text = conditioned[0][0][0][0, :, :-2]
    # Core numbers the prompt 0 and the negative prompt 1; the first frame alone comes after.
    for number, shown, context in seen:
        assert shown == (number != 1)
        assert torch.allclose(context, text, atol=1e-5) == (number == 0)
    assert {number for number, *_ in seen} == {0, 1, 2}
