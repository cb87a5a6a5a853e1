from dataclasses import replace

import pytest
import torch
from support import release, tiny

from fusionframes.ff_kernels.checkpoints.conversion import write_checkpoint
from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.errors import CheckpointError, InputError
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.settings import LEVELS, Settings
from fusionframes.ff_kernels.sampling.samplers import Stopped
from fusionframes.ff_kernels.stages.decoding import decode

QUICK = Settings(fps="low", width=16, height=24, steps=3)
PROMPT = "a large red circle moves left on a white background"


@pytest.mark.parametrize("fps", LEVELS)
def test_generate_has_the_frames_size_and_rate_of_its_level(folder, fps):
    clip = Pipeline.from_folder(folder).generate(PROMPT, replace(QUICK, fps=fps))
    passes, rate = LEVELS[fps]
    assert clip.frames.shape == ({0: 3, 1: 9, 2: 33}[passes], 24, 16, 3)
    assert clip.fps == rate
    assert clip.frames.min() >= 0
    assert clip.frames.max() <= 1
    assert torch.equal(clip.latents[:: 4**passes], clip.keyframes)
    assert {"text", "keyframes", "decoding"} <= set(clip.seconds)


def write_masked_network(folder):
    tensors = {**tiny.unet(tiny.MASKED, 1).state_dict(), "null_embedding": tiny.draw(tiny.CONTEXT, seed=5)}
    write_checkpoint(folder / "gaps.safetensors", Kind("masked", "1.0", tiny.MASKED), tensors, None)


def test_a_folder_with_a_masked_network_in_place_of_the_interpolation_generates(tmp_path):
    release.write(tmp_path, "1.0", without=("interpolation",))
    write_masked_network(tmp_path)
    clip = Pipeline.from_folder(tmp_path).generate(PROMPT, replace(QUICK, fps="medium"))
    assert clip.frames.shape == (9, 24, 16, 3)
    assert torch.equal(clip.latents[::4], clip.keyframes)
    assert clip.latents.isfinite().all()


def test_masked_network_of_another_release_is_refused(tmp_path):
    release.write(tmp_path, "1.1", without=("interpolation",))
    write_masked_network(tmp_path)
    with pytest.raises(CheckpointError, match=r"a masked-frame interpolation U-Net of release 1.1 .* got one of"):
        Pipeline.from_folder(tmp_path)


def test_generate_same_seed_same_clip_other_seed_other_clip(folder):
    pipeline = Pipeline.from_folder(folder)
    first, again, other = (pipeline.generate(PROMPT, replace(QUICK, seed=seed)).frames for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_stages_called_alone_give_the_clip_of_generate(folder):
    pipeline = Pipeline.from_folder(folder)
    settings = pipeline.resolve(replace(QUICK, fps="medium"))
    clip = pipeline.generate(PROMPT, settings)
    text = pipeline.encode_text([PROMPT])
    first = None
    if pipeline.family == "1.1":
        first = pipeline.encode_picture(pipeline.sample_picture(text, settings), settings)
    keyframes = pipeline.sample_keyframes(text, settings, first_frame=first)
    video = pipeline.interpolate(keyframes, settings, text=text)
    assert torch.equal(keyframes[0], clip.keyframes)
    assert torch.equal(video[0], clip.latents)
    assert torch.equal(pipeline.decode(video[0], settings), clip.frames)


@pytest.mark.parametrize("mended", [False, True])
def test_decoded_chunks_are_the_frames_of_the_clip(folder, mended):
    pipeline = Pipeline.from_folder(folder)
    settings = pipeline.resolve(replace(QUICK, fps="medium", is_mended=mended))
    sampled, clip = pipeline.sample(PROMPT, settings), pipeline.generate(PROMPT, settings)
    assert torch.equal(sampled.latents, clip.latents)
    assert "decoding" not in sampled.seconds
    chunks = list(pipeline.decode_chunks(sampled.latents, settings))
    assert len(chunks) > 1
    assert torch.equal(torch.cat(chunks), clip.frames)


def test_generate_stops_when_asked_and_the_next_run_works(folder):
    pipeline, calls = Pipeline.from_folder(folder), []
    with pytest.raises(Stopped):
        pipeline.generate(PROMPT, QUICK, progress=lambda *call: calls.append(call) or len(calls) == 2)
    assert len(calls) == 2
    assert pipeline.generate(PROMPT, QUICK).frames.isfinite().all()


def test_generate_from_a_picture_is_for_release_1_1_and_depends_on_it(folder):
    pipeline = Pipeline.from_folder(folder)
    pictures = [torch.zeros(30, 40, 3), torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(0))]
    if pipeline.family == "1.0":
        with pytest.raises(InputError, match=r"release 1\.0"):
            pipeline.generate(PROMPT, QUICK, picture=pictures[0])
        return
    one, two = (pipeline.generate(PROMPT, QUICK, picture=picture) for picture in pictures)
    assert not torch.equal(one.frames, two.frames)


def test_generate_negative_prompt_is_for_release_1_0(folder):
    pipeline = Pipeline.from_folder(folder)
    if pipeline.family == "1.1":
        with pytest.raises(InputError, match=r"release 1\.1"):
            pipeline.generate(PROMPT, QUICK, negative="blue")
        return
    plain = pipeline.generate(PROMPT, QUICK).frames
    other = pipeline.generate(PROMPT, QUICK, negative="a blue square on a brown background").frames
    assert not torch.equal(plain, other)


def test_decode_mended_differs_only_where_the_decoder_looks_at_time(folder):
    pipeline = Pipeline.from_folder(folder)
    settings = pipeline.resolve(QUICK)
    latents = torch.randn(9, 4, 12, 8, generator=torch.Generator().manual_seed(1))
    released = pipeline.decode(latents, settings)
    mended = pipeline.decode(latents, replace(settings, is_mended=True))
    assert torch.equal(released, mended) == (pipeline.family == "1.0")
    network = pipeline.network(pipeline.release.decoder).network
    exact = decode(network, latents, shared_map=pipeline.family == "1.1").permute(0, 2, 3, 1)
    assert torch.equal(released, exact)


@pytest.mark.parametrize(("change", "named"), [
    ({"width": 18}, "width.*multiple of 4 pixels, got 18"), ({"height": 0}, "height.*got 0"),
    ({"width": -8}, "got -8"), ({"steps": 0}, "got 0"), ({"steps": -3}, "got -3"), ({"steps": 1001}, "got 1001"),
    ({"seed": -1}, "got -1"), ({"fps": "24"}, "'24'"), ({"fps": "high", "keyframes": 1}, "got 1"),
])  # fmt: skip
def test_resolve_wrong_setting_is_named(folder, change, named):
    with pytest.raises(InputError, match=named):
        Pipeline.from_folder(folder).resolve(replace(QUICK, **change))


def test_generate_missing_interpolation_is_named_before_any_work(folder, tmp_path):
    release.write(tmp_path, Pipeline.from_folder(folder).family, without=("interpolation",))
    with pytest.raises(CheckpointError, match="expected an interpolation U-Net of release"):
        Pipeline.from_folder(tmp_path).generate(PROMPT, replace(QUICK, fps="medium"))
