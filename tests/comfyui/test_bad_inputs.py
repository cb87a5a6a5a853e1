"""Every node with what a user may connect by mistake: one sentence that names the input and the fix."""

import pytest
import torch

ERRORS = (ValueError, OSError, RuntimeError)
CASES = {}


def case(match):
    def add(function):
        CASES[function.__name__] = (function, match)
        return function

    return add


def keyframes(core, demo, prompts, latent, **changes):
    inputs = {
        "model": demo.model, "positive": prompts[0], "negative": prompts[1], "latent": latent, "seed": 0, "steps": 2,
        "guidance_scale": 2.0,
    }  # fmt: skip
    return core.run("FusionFramesKeyframeSampler", **{**inputs, **changes})


def interpolated(core, demo, latent, node="FusionFramesInterpolate", **changes):
    inputs = {"model": demo.interpolation, "latent": latent, "seed": 0, "steps": 2, "guidance_scale": 0.25}
    if node == "FusionFramesInterpolate":
        inputs |= {"passes": 1, "fps": 2.0}
    return core.run(node, **{**inputs, **changes})


def masked(latent, flags):
    mask = torch.tensor(flags, dtype=torch.float32)[:, None, None].expand(-1, 16, 16)
    return {**latent, "noise_mask": mask}


@case(r"model_name expected a keyframe U-Net or an interpolation U-Net, got an image MoVQ.*FusionFrames Load MoVQ")
def movq_in_model_loader(core, demo, prompts, latent):
    files = core.module("nodes.adapters.files")
    path = core.module("nodes._compat").file_path("vae", "fusionframes_demo_movq.safetensors")
    files.open_weights(path, ("keyframe", "interpolation"), "model_name")


@case(r"vae_name: .*got an ordinary Stable Diffusion autoencoder")
def ordinary_autoencoder_in_movq_loader(core, demo, prompts, latent):
    from safetensors.torch import save_file

    folder = core.base / "models" / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    names = ["encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight", "post_quant_conv.weight"]
    save_file({name: torch.zeros(4, 4, 1, 1) for name in names}, folder / "sd_vae.safetensors")
    core.folder_paths.filename_list_cache.clear()
    core.run("FusionFramesLoadMoVQ", vae_name="sd_vae.safetensors")


@case(r"projection_name expected text projections, got a T5 text encoder.*choose the keyframe checkpoint")
def text_encoder_without_projection(core, demo, prompts, latent):
    core.run(
        "FusionFramesLoadTextEncoder",
        text_encoder_name="fusionframes_demo_text_encoder.safetensors",
        projection_name="none",
    )


@case(r"model expected the keyframe U-Net, got the interpolation U-Net of release 1.0: .*FusionFrames Interpolate")
def interpolation_model_in_keyframe_sampler(core, demo, prompts, latent):
    keyframes(core, demo, prompts, latent, model=demo.interpolation)


@case(r"model expected the interpolation U-Net, got the keyframe U-Net of release 1.0: .*FusionFrames Keyframe Sampler")
def keyframe_model_in_interpolate(core, demo, prompts, latent):
    interpolated(core, demo, latent, model=demo.model)


@case(r"model expected the keyframe U-Net, got the interpolation U-Net")
def interpolation_model_in_ksampler(core, demo, prompts, latent):
    ksampler = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]()
    ksampler.sample(demo.interpolation, 1, 2, 3.0, "euler", "normal", *prompts, latent, 1.0)


@case(r"positive expected text only, got a first frame with a release 1.0 model.*release 1.1")
def release_1_0_with_image(core, demo, prompts, latent):
    picture = torch.rand(1, 64, 64, 3)
    positive, negative, latent = core.run(
        "FusionFramesImageToVideo", positive=prompts[0], negative=prompts[1], vae=demo.vae, image=picture, width=64,
        height=64, keyframes=5,
    )  # fmt: skip
    keyframes(core, demo, (positive, negative), latent)


@case(r"model expected a keyframe U-Net of release 1.1, got release 1.0, which reads no first frame")
def dual_guider_of_release_1_0(core, demo, prompts, latent):
    core.run(
        "FusionFramesDualGuider", model=demo.model, positive=prompts[0], negative=prompts[1], guidance_scale=5.0,
        image_guidance=2.0,
    )  # fmt: skip


@case(r"latent expected a video latent \[B, 4, T, h, w\] of MoVQ, got \[1, 16, 16, 16\]")
def sixteen_channel_latent(core, demo, prompts, latent):
    interpolated(core, demo, {"samples": torch.randn(1, 16, 16, 16)})


@case(r"latent expected a video latent \[B, 4, T, h, w\] of MoVQ, got \[1, 4, 16, 16\]")
def picture_latent_in_decode(core, demo, prompts, latent):
    core.run("FusionFramesMoVQDecode", vae=demo.vae, latent={"samples": torch.randn(1, 4, 16, 16)})


@case(r"width expected a multiple of 64 pixels, got 500: take 512")
def width_not_a_multiple(core, demo, prompts, latent):
    core.run("FusionFramesEmptyLatent", width=500, height=512, keyframes=15)


@case(r"height expected a multiple of 2 latent positions, got 15: take 1[46]")
def latent_side_not_a_multiple(core, demo, prompts, latent):
    keyframes(core, demo, prompts, {"samples": torch.zeros(1, 4, 5, 15, 16)})


@case(r"latent expected two or more frames to interpolate between, got 1")
def one_keyframe_into_interpolate(core, demo, prompts, latent):
    interpolated(core, demo, {"samples": torch.zeros(1, 4, 1, 16, 16)})


@case(r"prompt expected a text, got an empty one: describe what the video shows")
def empty_prompt(core, demo, prompts, latent):
    core.run("FusionFramesTextEncode", clip=demo.clip, prompt=" \n")


@case(r"latent expected numbers, got a latent with NaN or infinite values")
def nan_latent(core, demo, prompts, latent):
    interpolated(core, demo, {"samples": torch.full((1, 4, 5, 16, 16), torch.nan)})


@case(r"steps expected 1 to 1000 sampling steps, got 0")
def zero_steps(core, demo, prompts, latent):
    keyframes(core, demo, prompts, latent, steps=0)


@case(r"steps expected 1 to 1000 sampling steps, got 0")
def zero_steps_of_interpolation(core, demo, prompts, latent):
    interpolated(core, demo, latent, steps=0)


@case(r"expected a mask of 5 frames, one for each frame of the clip, got 4")
def mask_of_wrong_length(core, demo, prompts, latent):
    interpolated(core, demo, masked(latent, [0, 1, 1, 0]), "FusionFramesMaskedInterpolate")


@case(r"latent expected a noise mask with 1 on missing frames, got none: connect Set Latent Noise Mask")
def no_mask(core, demo, prompts, latent):
    interpolated(core, demo, latent, "FusionFramesMaskedInterpolate")


@case(r"first and the last frame to be known, got 4 known frames .* of 5")
def gap_at_the_end(core, demo, prompts, latent):
    interpolated(core, demo, masked(latent, [0, 0, 0, 0, 1]), "FusionFramesMaskedInterpolate")


@case(r"vae expected a MoVQ, got VAE: load one with FusionFrames Load MoVQ")
def foreign_vae_in_decode(core, demo, prompts, latent):
    sd = __import__("comfy.sd", fromlist=["VAE"])
    core.run("FusionFramesMoVQDecode", vae=sd.VAE(sd={}), latent=latent)


@case(r"positive conditioning expected text of this model, 64 wide, got \[1, 77, 768\]")
def foreign_text_in_ksampler(core, demo, prompts, latent):
    foreign = [[torch.zeros(1, 77, 768), {}]]
    ksampler = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]()
    ksampler.sample(demo.model, 1, 2, 3.0, "euler", "normal", foreign, foreign, latent, 1.0)


@case(r"positive expected one conditioning, got 2 combined ones: use KSampler")
def combined_prompts_in_keyframe_sampler(core, demo, prompts, latent):
    keyframes(core, demo, (prompts[0] + prompts[0], prompts[1]), latent)


@case(r"clip expected the last layer")
def chosen_clip_layer(core, demo, prompts, latent):
    clip = demo.clip.clone()
    clip.clip_layer(-2)
    core.run("FusionFramesTextEncode", clip=clip, prompt="a circle")


@pytest.mark.parametrize("name", CASES)
def test_mistake_gets_one_sentence(core, demo, prompts, latent, name):
    function, match = CASES[name]
    with pytest.raises(ERRORS, match=match) as caught:
        function(core, demo, prompts, latent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 3), (1, 30, 90, 4), (1, 64, 64, 1), (1, 4320, 7680, 3)], ids=["1x1", "alpha", "grey", "8K"]
)
def test_any_picture_becomes_a_first_frame_without_black_bars(core, demo, prompts, shape):
    positive, _, latent = core.run(
        "FusionFramesImageToVideo", positive=prompts[0], negative=prompts[1], vae=demo.vae,
        image=torch.full(shape, 0.9), width=64, height=32, keyframes=5,
    )  # fmt: skip
    frame = positive[0][1]["fusionframes_first_frame"]
    assert frame.shape == (1, 4, 8, 16)
    assert latent["samples"].shape == (1, 4, 5, 8, 16)
    # A bar would be another colour: all positions away from the border encode the same.
    inner = frame[:, :, 2:-2, 2:-2]
    assert inner.std(dim=(2, 3)).max() < 0.05


def test_thousand_words_are_cut_and_counted(core, demo):
    cls = core.nodes.NODE_CLASS_MAPPINGS["FusionFramesTextEncode"].PREPARE_CLASS_CLONE({})
    output = cls.execute(clip=demo.clip, prompt="circle " * 1000, negative_prompt="")
    assert output.args[0][0][0].shape[1] == 128
    assert "128 of 128 tokens used, 873 dropped at the end" in str(output.ui.as_dict())
