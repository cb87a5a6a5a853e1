"""Every call that a node makes of a network, in a core whose card is neither CPU nor CUDA."""

from types import SimpleNamespace

import pytest
import torch
from support import release, soroban, tiny

CARD = torch.device(soroban.NAME, 0)
BYTES = 8 << 30


@pytest.fixture(scope="module")
def files(core, tmp_path_factory):
    """Opens the files of a tiny release 1.1."""
    folder = tmp_path_factory.mktemp("v11")
    release.write(folder, "1.1")
    reading, model = core.module("nodes.adapters.files"), core.module("nodes.adapters.model")

    def opened(name):
        return reading.open_weights(folder / f"{name}.safetensors", (name,), "file")

    return SimpleNamespace(
        model=lambda name: model.load_model(opened(name), None),
        clip=lambda: core.module("nodes.adapters.clip").load_clip(
            opened("text_encoder"), reading.open_projection(folder / "t5.safetensors", "projection_name"),
            core.module("ff_kernels.stages.tokenizer").Tokenizer(folder / "spiece.model"), None,
        ),
        vae=lambda: core.module("nodes.adapters.vae").MoVQVAE(opened("video_movq")),
    )  # fmt: skip


@pytest.fixture
def card(monkeypatch, core):
    """Core's memory management of a machine with the card; what was loaded is unloaded before it goes."""
    import comfy.model_management as management

    def free(device=None, torch_free_too=False):
        return (BYTES, BYTES) if torch_free_too else BYTES

    with monkeypatch.context() as patch:
        for name in ("get_torch_device", "text_encoder_device", "vae_device"):
            patch.setattr(management, name, lambda: CARD)
        patch.setattr(management, "get_free_memory", free)
        patch.setattr(management, "get_total_memory", lambda *_: BYTES)
        yield
        management.unload_all_models()


def run_v10(core):
    """Yield what the nodes of release 1.0 make of the demo networks."""
    demo = core.load_demo()
    prompts = core.run(
        "FusionFramesTextEncode", clip=demo.clip, prompt="a large red circle moves up", negative_prompt=""
    )
    yield "text", prompts[0][0][0]
    latent = core.run("FusionFramesEmptyLatent", width=64, height=64, keyframes=2, vae=demo.vae)[0]
    sample = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]().sample
    yield "KSampler", sample(demo.model, 1, 1, 3.0, "euler", "normal", *prompts, latent, 1.0)[0]["samples"]
    told = {"positive": prompts[0], "negative": prompts[1]}
    keyframes = core.run("FusionFramesKeyframeSampler", model=demo.model, **told, latent=latent, seed=1, steps=1)[0]
    yield "keyframes", keyframes["samples"]
    gaps = {"model": demo.interpolation, "seed": 1, "steps": 1}
    video = core.run("FusionFramesInterpolate", **gaps, latent=keyframes, passes=1, fps=2.0)[0]
    yield "interpolation", video["samples"]
    missing = torch.tensor([0.0, 1, 1, 1, 0])[:, None, None].expand(-1, 8, 8)
    known = {"samples": tiny.draw(1, 4, 5, 8, 8, seed=2), "noise_mask": missing}
    yield "masked", core.run("FusionFramesMaskedInterpolate", **gaps, latent=known)[0]["samples"]
    yield "decoding", core.run("FusionFramesMoVQDecode", vae=demo.vae, latent=video)[0]


def run_v11(core, files):
    """Yield what the nodes of release 1.1 make of tiny networks."""
    model, vae = files.model("keyframe"), files.vae()
    prompts = core.run("FusionFramesTextEncode", clip=files.clip(), prompt="a large red circle", negative_prompt="")
    positive, negative, latent = core.run(
        "FusionFramesImageToVideo", positive=prompts[0], negative=prompts[1], vae=vae, width=16, height=16, keyframes=3,
        image=torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(0)),
    )  # fmt: skip
    told = {"model": model, "positive": positive, "negative": negative, "guidance_scale": 5.0, "image_guidance": 2.0}
    keyframes = core.run("FusionFramesKeyframeSampler", **told, latent=latent, seed=5, steps=2)[0]
    yield "keyframes", keyframes["samples"]
    (guider,), (sampler,) = core.run("FusionFramesDualGuider", **told), core.run("FusionFramesDDPM")
    (sigmas,) = core.run("FusionFramesSchedule", model=model, steps=2)
    noise = tiny.draw(*latent["samples"].shape, seed=3)
    yield "guider", guider.sample(noise, latent["samples"], sampler, sigmas, seed=5)
    gaps = {"model": files.model("interpolation"), "positive": positive, "seed": 0, "steps": 1}
    video = core.run("FusionFramesInterpolate", **gaps, latent=keyframes, passes=1, fps=2.0)[0]
    yield "interpolation", video["samples"]
    yield "decoding", core.run("FusionFramesMoVQDecode", vae=vae, latent=video)[0]


@pytest.mark.parametrize("release_name", ["1.0", "1.1"])
def test_nodes_give_what_they_give_on_the_cpu(core, files, request, release_name):
    def run():
        with torch.inference_mode():
            results = run_v10(core) if release_name == "1.0" else run_v11(core, files)
            return {name: out.cpu() for name, out in results}

    expected = run()
    request.getfixturevalue("card")
    soroban.LEDGER.restart()
    before = soroban.LEDGER.alive
    made = run()
    # All networks of a run have been there.
    assert soroban.LEDGER.peak - before > 1 << 20
    assert made.keys() == expected.keys()
    for name, out in made.items():
        assert (out - expected[name]).abs().max() < 2e-3, name
