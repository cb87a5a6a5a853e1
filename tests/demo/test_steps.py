import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fusionframes.ff_kernels.checkpoints.folder import find_models
from fusionframes.ff_kernels.demo import batches, recipe
from fusionframes.ff_kernels.demo import steps as stages
from fusionframes.ff_kernels.demo.start.latents import fit_latents_to_range
from fusionframes.ff_kernels.demo.train import main
from fusionframes.ff_kernels.demo.world.scenes import is_held_out, reversed_scene
from fusionframes.ff_kernels.models.movq import MoVQ
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.sampling.gaps import join_gaps
from fusionframes.ff_kernels.stages.tokenizer import Tokenizer
from fusionframes.ff_kernels.training.initial import initialise
from fusionframes.ff_kernels.training.run_folder import TrainRun


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


def test_draw_scene_never_draws_a_held_out_combination_nor_the_reverse_of_one():
    rng = np.random.default_rng(0)
    drawn = [batches.draw_scene(rng) for _ in range(500)]
    assert not any(is_held_out(scene) or is_held_out(reversed_scene(scene)) for scene in drawn)


def test_draw_gaps_frames_join_to_the_window_they_were_cut_from():
    windows = torch.randn(1, 17, 4, 2, 2)
    clips = {skip: batches.LatentClips(windows.half(), (batches.TRAINING_SCENES[0],)) for skip in (1, 3)}
    for seed in range(20):
        keyframes, inner, _, keep, skips, level, timesteps, bars = batches.draw_gaps(
            np.random.default_rng(seed), 4, clips
        )
        for i in range(4):
            if level[i] == 0:
                joined = join_gaps(keyframes[i : i + 1], inner[i])[0]
                stored = windows.half().float()[0]
                assert torch.equal(joined, stored) or torch.equal(joined, stored.flip(0))
        assert set(keep.tolist()) <= {0.0, 1.0}
        assert set(skips.tolist()) <= {1, 3}
        assert ((bars > 0) & (bars < 1)).all()
        assert ((timesteps >= 0) & (timesteps < 1000)).all()


def test_fit_latents_to_range_moves_the_latents_and_keeps_the_pictures():
    with torch.no_grad():
        movq = MoVQ(recipe.MOVQ)
        pixels = torch.rand(6, 3, 16, 16) * 2 - 1
        latents = movq.encode(pixels)
        pictures = movq.decode(latents, frames=1)
        fit_latents_to_range(movq, latents)
        fitted = movq.encode(pixels)
        assert torch.allclose(fitted.amax(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)
        assert torch.allclose(fitted.amin(dim=(0, 2, 3)), -torch.ones(4), atol=1e-3)
        assert torch.allclose(movq.decode(fitted, frames=1), pictures, atol=1e-4)


def test_draw_groups_draws_the_clips_of_draw_gaps():
    windows = torch.randn(3, 17, 4, 2, 2)
    clips = {skip: batches.LatentClips(windows.half(), (batches.TRAINING_SCENES[0],) * 3) for skip in (1, 3)}
    for seed in range(5):
        gaps = batches.draw_gaps(np.random.default_rng(seed), 4, clips)
        groups = batches.draw_groups(np.random.default_rng(seed), 4, clips)
        assert torch.equal(gaps[0], groups[0])
        assert torch.equal(gaps[1], groups[1][:, :, 1:4].flatten(2, 3))
        assert all(torch.equal(a, b) for a, b in zip(gaps[3:6], groups[3:6], strict=True))


def test_train_tokenizer_covers_every_caption_word():
    tokenizer = Tokenizer(stages.train_tokenizer())
    from fusionframes.ff_kernels.demo.world.scenes import caption_corpus

    for caption in caption_corpus(3, 200):
        assert tokenizer.processor.unk_id() not in tokenizer.encode(caption).ids


def test_every_stage_runs_from_nothing_to_a_model_that_generates(tmp_path):
    # Each stage for real, at a thousandth of its length: the weights are useless, the files must fit together.
    run = TrainRun(tmp_path, torch.device("cpu"), torch.float32, share=0.001)
    for stage in stages.STAGES:
        stages.run_stage(stage, run)
    trained, start = load_file(tmp_path / "video_movq.safetensors"), load_file(tmp_path / "decoder.safetensors")
    assert torch.equal(trained["movq.encoder.conv_in.weight"], start["movq.encoder.conv_in.weight"])
    assert not torch.equal(trained["movq.decoder.conv_in.weight"], start["movq.decoder.conv_in.weight"])
    pipeline = Pipeline(find_models(tmp_path / "weights"))
    clip = pipeline.generate("a red circle", Settings(fps="medium", width=64, height=64, steps=2))
    assert clip.frames.shape == (17, 64, 64, 3)
    assert clip.frames.isfinite().all()
    # Finished stages are taken up as they are.
    results = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    assert len(results) == len(stages.STAGES) - 1
    for stage in stages.STAGES:
        stages.run_stage(stage, run)
    assert results == {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}


@pytest.mark.parametrize(("stage", "last"), [("movq", "fit_latents_to_range"), ("text", "spread_projection")])
def test_a_stage_killed_before_its_last_step_leaves_no_result(tmp_path, monkeypatch, stage, last):
    def kill(*_):
        raise KeyboardInterrupt

    run = TrainRun(tmp_path, torch.device("cpu"), torch.float32, share=0.001)
    with monkeypatch.context() as patch:
        patch.setattr(stages, last, kill)
        with pytest.raises(KeyboardInterrupt):
            stages.run_stage(stage, run)
    assert not run.result(stage).exists()
    stages.run_stage(stage, run)
    assert run.result(stage).exists()


def test_run_encodes_clips_anew_for_another_count_or_movq(tmp_path):
    run, encoded = TrainRun(tmp_path, torch.device("cpu"), torch.float32), []

    def encode(movq, count):
        encoded.append(count)
        return batches.LatentClips(torch.full((count, 1), float(len(encoded))), (batches.TRAINING_SCENES[0],) * count)

    first, second = (initialise(MoVQ(recipe.MOVQ)) for _ in range(2))
    for movq, count, expected in ((first, 2, 1), (first, 2, 1), (first, 3, 2), (second, 3, 3), (second, 3, 3)):
        clips = batches.cached_clips(run, "some", movq, count, encode)
        assert clips.latents.tolist() == [[expected]] * count
        assert clips.scenes == (batches.TRAINING_SCENES[0],) * count
    assert encoded == [2, 3, 3]


@pytest.mark.parametrize("stage", ["decoder", "start", "finish", "export"])
def test_training_command_says_which_stage_is_missing_and_leaves_nothing(tmp_path, capsys, stage):
    with pytest.raises(SystemExit) as stop:
        main(["--output", str(tmp_path / "run"), "--stage", stage])
    assert stop.value.code == 2
    assert "first" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert not (tmp_path / "run" / "weights").exists()
