"""The metric nodes in the real core; CLIPs are core's own classes, small and with random weights."""

import json
import math
import tempfile
from pathlib import Path

import pytest
import torch

from fusionframes.ff_kernels.metrics.consistency import temporal_curves

L, G = 64, 48
PROMPT = "a large red circle moves up"


def module(name):
    return __import__(name, fromlist=["x"])


def text_config(width):
    return {"num_hidden_layers": 3, "hidden_size": width, "num_attention_heads": 2, "intermediate_size": 2 * width}


def fill(network, seed=0):
    """Random weights of usual sizes; core leaves new ones as the memory happens to be."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        is_norm = "norm" in name and name.endswith("weight")
        parameter.data.copy_(1 + values * 0.1 if is_norm else values * 0.1)


def make_clip(tokenizer, model):
    options = {"clip_l_model_config": text_config(L), "clip_g_model_config": text_config(G), "dtype": torch.float32}
    target = module("comfy.supported_models_base").ClipTarget(tokenizer, model)
    clip = module("comfy.sd").CLIP(target, model_options=options)
    fill(clip.cond_stage_model)
    return clip


def make_vision(width, **changes):
    config = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_channels": 3,
        "hidden_act": "quick_gelu", "image_size": 32, "patch_size": 8, "model_type": "clip_vision_model",
        "projection_dim": width,
    }  # fmt: skip
    # Older cores read the configuration from a file only.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps({**config, **changes}))
        vision = module("comfy.clip_vision").ClipVisionModel(str(path))
    fill(vision.model, seed=1)
    return vision


@pytest.fixture(scope="module")
def clip_l(core):
    sd1 = module("comfy.sd1_clip")
    return make_clip(sd1.SD1Tokenizer, sd1.SD1ClipModel)


@pytest.fixture(scope="module")
def clip_sdxl(core):
    sdxl = module("comfy.sdxl_clip")
    return make_clip(sdxl.SDXLTokenizer, sdxl.SDXLClipModel)


@pytest.fixture(scope="module")
def vision(core):
    return make_vision(L)


@pytest.fixture
def video():
    """A bright square that moves right on noise, [19, 40, 56, 3]."""
    frames = torch.rand(1, 40, 56, 3, generator=torch.Generator().manual_seed(0)).expand(19, -1, -1, -1) * 0.5
    frames = frames.clone()
    for i, frame in enumerate(frames):
        frame[10:20, 5 + 2 * i : 15 + 2 * i] = torch.tensor([1.0, 0.8, 0.2])
    return frames


def noisy(frames, seed=1):
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    return (frames + noise).clamp(0, 1)


def clipsim(core, frames, clip, vision, prompt=PROMPT):
    return core.run("FusionFramesClipSim", images=frames, clip=clip, clip_vision=vision, prompt=prompt)


def test_compare_gives_curves_text_and_numbers(core, video):
    other = noisy(video)
    other[::4] = video[::4]
    plot, table, psnr, ssim, mse = core.run("FusionFramesCompare", reference=video, images=other)
    errors = (video.double() - other.double()).square().mean((1, 2, 3))
    assert mse == pytest.approx(errors.mean().item(), rel=1e-4)
    assert psnr == pytest.approx((-10 * errors[errors > 0].log10()).mean().item(), rel=1e-4)
    assert 0.5 < ssim < 1
    assert plot.shape[0] == 1
    assert plot.shape[-1] == 3
    assert plot.dtype == torch.float32
    assert 0 <= plot.min() < plot.max() <= 1
    lines = table.splitlines()
    assert len(lines) == 2 + 19 + 1
    assert lines[2].split()[:2] == ["0", "inf"]
    assert lines[3].split()[1] == f"{-10 * errors[1].log10().item():.4f}"
    assert "without 5 of 19 frames that equal the reference" in lines[-1]


def test_compare_of_equal_videos_is_infinite_and_still_plots(core, video):
    plot, _, psnr, ssim, mse = core.run("FusionFramesCompare", reference=video, images=video.clone())
    assert (psnr, mse) == (math.inf, 0)
    assert ssim == pytest.approx(1)
    assert plot.shape[-1] == 3


def test_compare_reads_alpha_grey_and_one_picture(core, video):
    alpha = torch.cat([video, torch.zeros(*video.shape[:3], 1)], -1)
    assert core.run("FusionFramesCompare", reference=alpha, images=video)[4] == 0
    grey = video[:1, ..., :1]
    plot, _, _, _, mse = core.run("FusionFramesCompare", reference=grey.expand(-1, -1, -1, 3), images=grey)
    assert mse == 0
    assert plot.shape[0] == 1


def test_consistency_is_that_of_the_engine(core, video):
    plot, table, *values = core.run("FusionFramesTemporalConsistency", images=video)
    curves = temporal_curves(video.movedim(-1, 1))
    assert values == pytest.approx([curve.mean().item() for curve in curves.values()], rel=1e-5)
    assert values[0] < values[1]
    assert len(table.splitlines()) == 2 + 19
    assert plot.shape[-1] == 3
    still = core.run("FusionFramesTemporalConsistency", images=video[:1].expand(4, -1, -1, -1))
    assert still[2:] == (0, 0, 0, 0)


def test_clipsim_is_the_cosine_in_the_space_of_the_projections(core, video, clip_l, vision):
    value, table = clipsim(core, video, clip_l, vision)
    encoder = clip_l.cond_stage_model.clip_l
    _, pooled = clip_l.encode_from_tokens(clip_l.tokenize(PROMPT), return_pooled="unprojected")
    text = pooled[0].double() @ encoder.transformer.text_projection.weight.detach().double().T
    encode = core.nodes.NODE_CLASS_MAPPINGS["CLIPVisionEncode"]()
    pictures = encode.encode(vision, video, "center")[0]["image_embeds"].double()
    expected = torch.nn.functional.cosine_similarity(pictures, text[None])
    assert value == pytest.approx(expected.mean().item(), abs=1e-5)
    assert expected.std() > 1e-4
    rows = [float(line.split()[1]) for line in table.splitlines()[2:]]
    assert rows == pytest.approx(expected.tolist(), abs=1e-4)


def test_clipsim_leaves_the_clip_as_it_was(core, video, clip_l, vision):
    tokens = clip_l.tokenize(PROMPT)
    before = clip_l.encode_from_tokens(tokens, return_pooled=True)
    clipsim(core, video, clip_l, vision)
    assert clip_l.cond_stage_model.clip_l.return_projected_pooled is False
    after = clip_l.encode_from_tokens(tokens, return_pooled=True)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_clipsim_of_two_encoders_reads_the_one_that_pools(core, video, clip_sdxl):
    value, _ = clipsim(core, video, clip_sdxl, make_vision(G))
    _, pooled = clip_sdxl.encode_from_tokens(clip_sdxl.tokenize(PROMPT), return_pooled=True)
    pictures = make_vision(G).encode_image(video)["image_embeds"]
    assert value == pytest.approx(torch.nn.functional.cosine_similarity(pictures, pooled).mean().item(), abs=1e-5)
    with pytest.raises(ValueError, match=r"\[19, 64\] and \[48\]"):
        clipsim(core, video, clip_sdxl, make_vision(L))


def test_clipsim_refuses_encoders_without_a_shared_space(core, demo, video, vision, clip_l):
    with pytest.raises(ValueError, match="text side of a CLIP, got CoreTextModel"):
        clipsim(core, video, demo.clip, vision)
    sd3 = module("comfy.text_encoders.sd3_clip")
    joined = make_clip(sd3.SD3Tokenizer, sd3.sd3_clip(clip_l=True, clip_g=True, t5=False))
    with pytest.raises(ValueError, match="64 or 48 wide, of one CLIP, got one 112 wide"):
        clipsim(core, video, joined, vision)
    siglip = make_vision(L, model_type="siglip_vision_model")
    siglip.model.visual_projection = torch.nn.Identity()
    with pytest.raises(ValueError, match="image side of a CLIP with its projection, got siglip_vision_model"):
        clipsim(core, video, clip_l, siglip)
    empty = make_vision(L)
    empty.model.visual_projection.weight.data.zero_()
    with pytest.raises(ValueError, match="with its projection, got clip_vision_model without one"):
        clipsim(core, video, clip_l, empty)
    with pytest.raises(ValueError, match="got an empty text"):
        clipsim(core, video, clip_l, vision, " ")


@pytest.mark.parametrize("kind", ["zeros", "identity", "memory", "nan"])
def test_clipsim_refuses_a_projection_that_no_file_filled(core, video, vision, kind):
    sd1 = module("comfy.sd1_clip")
    clip = make_clip(sd1.SD1Tokenizer, sd1.SD1ClipModel)
    weight = clip.cond_stage_model.clip_l.transformer.text_projection.weight
    values = {"zeros": torch.zeros(L, L), "identity": torch.eye(L), "nan": torch.full((L, L), math.nan)}
    weight.data.copy_(values.get(kind, torch.full((L, L), 1e6).tril()))
    with pytest.raises(ValueError, match="clip expected a text projection, found none in its file"):
        clipsim(core, video, clip, vision)


CASES = {
    "fewer_frames": (slice(0, 18), r"expected 19 frames of 56 x 40 pixels as in reference, got 18 frames of 56 x 40"),
    "other_size": ((slice(None), slice(0, 32)), r"as in reference, got 19 frames of 56 x 32 pixels: .*Upscale Image"),
}


@pytest.mark.parametrize("name", CASES)
def test_compare_names_what_differs(core, video, name):
    part, match = CASES[name]
    with pytest.raises(ValueError, match=match):
        core.run("FusionFramesCompare", reference=video, images=video[part])


def test_mistakes_of_all_metric_nodes_are_one_sentence(core, video, clip_l, vision):
    bad = video.clone()
    bad[3, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="images expected numbers, got NaN"):
        core.run("FusionFramesCompare", reference=video, images=bad)
    with pytest.raises(ValueError, match="reference expected numbers, got NaN"):
        core.run("FusionFramesCompare", reference=bad, images=video)
    with pytest.raises(ValueError, match="images expected numbers, got NaN"):
        core.run("FusionFramesTemporalConsistency", images=bad)
    with pytest.raises(ValueError, match="images expected numbers, got NaN"):
        clipsim(core, bad, clip_l, vision)
    with pytest.raises(ValueError, match=r"sides of 11 or more pixels for SSIM, got 56 x 10"):
        core.run("FusionFramesCompare", reference=video[:, :10], images=video[:, :10])
    with pytest.raises(ValueError, match="3 or more frames for temporal consistency, got 2"):
        core.run("FusionFramesTemporalConsistency", images=video[:2])


@pytest.mark.parametrize("node", ["FusionFramesCompare", "FusionFramesTemporalConsistency", "FusionFramesClipSim"])
def test_cancel_ends_a_measurement(core, video, clip_l, vision, node):
    inputs = {
        "FusionFramesCompare": {"reference": video, "images": noisy(video)},
        "FusionFramesTemporalConsistency": {"images": video},
        "FusionFramesClipSim": {"images": video, "clip": clip_l, "clip_vision": vision, "prompt": PROMPT},
    }[node]
    mm = module("comfy.model_management")
    mm.interrupt_current_processing(True)
    try:
        with pytest.raises(mm.InterruptProcessingException):
            core.run(node, **inputs)
    finally:
        mm.interrupt_current_processing(False)
