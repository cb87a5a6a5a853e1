"""Fine-tuning from the command line on the demo model: what it writes, how it goes on, what it refuses."""

import csv
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fusionframes.ff_kernels.checkpoints.folder import find_models
from fusionframes.ff_kernels.checkpoints.loading import load, load_contents
from fusionframes.ff_kernels.checkpoints.lora import read_lora, with_loras
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo import WEIGHTS, ninth
from fusionframes.ff_kernels.demo.evaluate import true_clips
from fusionframes.ff_kernels.demo.lessons import draw_steps
from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.demo.world.measure import measure_clip
from fusionframes.ff_kernels.media.video import write_frames
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.training import finetune
from fusionframes.ff_kernels.training.interruption import SignalStop
from fusionframes.ff_kernels.training.noise_levels import draw_normal
from fusionframes.ff_kernels.training.objectives import KeyframeTuning

BASE = WEIGHTS / "diffusion_models" / "fusionframes_demo_keyframes.safetensors"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    ninth.write_clips(folder, 6, is_new=True)
    return folder


def train(clips, output, *options, steps=3):
    usual = ("--source-fps", 2, "--rank", 2, "--steps", steps, "--accumulate", 1)
    arguments = ["train", clips, "-o", output, *usual, *options]
    return main([str(argument) for argument in arguments])


def test_a_short_lora_knows_clips_better_that_it_has_not_seen(tmp_path, clips, capsys):
    output = tmp_path / "zigzag.safetensors"
    options = ("--rank", 8, "--batch", 2, "--learning-rate", 6e-3, "--noise-weight", 100, "--no-checkpoints")
    assert train(clips, output, *options, steps=40) == 0
    assert output.stat().st_size < 1_000_000
    assert "MB after 40 steps" in capsys.readouterr().out
    batches, losses = held_out_batches(2), []
    for strength in (0.0, 0.5, 1.0):
        models = with_loras(find_models(WEIGHTS), [(output, strength)])
        loaded = load_contents(*models.files["keyframe"], dtype=torch.float32)
        objective = KeyframeTuning(loaded.network, loaded.null_embedding, 100.0)
        losses.append(sum(objective(*batch).item() for batch in batches))
    assert losses[0] > 1.1 * max(losses[1:]), losses


def test_the_grades_take_every_true_zigzag_and_no_known_motion():
    rng = np.random.default_rng(3)
    scenes = [scene for held_out in (True, False) for scene in ninth.zigzag_scenes(held_out)]
    assert len(scenes) == len(set(scenes)) == 192
    assert all(ninth.zigzags(measure_clip(ninth.render_zigzag(scene, rng))) for scene in scenes[::3])
    assert not any(ninth.zigzags(measure_clip(clip)) for clip in true_clips(32, 5))


def held_out_batches(count):
    """Clips of the ninth motion that were not trained, at noisy steps, where the caption decides what moves where."""
    pipeline, rng = demo_pipeline(), np.random.default_rng(5)
    scenes = ninth.zigzag_scenes(held_out=True)[:8]
    movq = pipeline.network("movq").network
    latents = torch.stack([movq.encode(ninth.render_zigzag(scene, rng) * 2 - 1) for scene in scenes])
    text = pipeline.prompts.encode([scene.caption() for scene in scenes])
    said = text.context, text.mask, text.lengths, torch.ones(8)
    return [(latents, draw_normal(rng, latents), *said, *draw_steps(rng, 8, (30, 46))) for _ in range(count)]


def test_a_stopped_run_goes_on_bit_for_bit_and_logs_every_step_once(tmp_path, clips, monkeypatch, capsys):
    whole, parted = tmp_path / "whole.safetensors", tmp_path / "parted.safetensors"
    assert train(clips, whole, steps=4) == 0
    add = finetune.Report.add

    def stop_at_two(report, training):
        add(report, training)
        if training.step == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(finetune.Report, "add", stop_at_two)
        assert train(clips, parted, steps=4) == 130
    assert not parted.exists()
    assert "stopped at step 2 of 4; the same command goes on" in capsys.readouterr().out
    assert train(clips, parted, steps=4) == 0
    a, b = load_file(whole), load_file(parted)
    assert all(torch.equal(a[key], b[key]) for key in a)
    rows = list(csv.DictReader((tmp_path / "parted.training" / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert all(float(row["loss"]) > 0 for row in rows)
    with Image.open(tmp_path / "parted.training" / "loss.png") as picture:
        assert picture.width > 300


def test_the_second_signal_interrupts_at_once():
    with SignalStop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_temporal_tune_is_a_whole_checkpoint_that_every_loader_takes(tmp_path, clips):
    output = tmp_path / "tuned.safetensors"
    assert train(clips, output, "--what", "temporal", "--learning-rate", 1e-3) == 0
    tuned, base = load(output, stage="keyframe"), load_file(BASE)
    for name, value in tuned.network.state_dict().items():
        assert value.dtype == base[name].dtype
        # Two steps of a warm-up move weights by more than float16 rounds, where a gradient reaches them.
        assert torch.equal(value, base[name]) or "temporal" in name
    changed = sum(not torch.equal(value, base[name]) for name, value in tuned.network.state_dict().items())
    assert changed > 50
    assert torch.equal(tuned.null_embedding, base["null_embedding"].to(tuned.null_embedding))


def test_interpolation_learns_from_clips_of_both_passes_and_its_lora_goes_to_that_network(tmp_path):
    frames = torch.rand(20, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    write_frames(frames, tmp_path / "a.mp4", 8.0)
    (tmp_path / "a.txt").write_text("noise")
    output = tmp_path / "gaps.safetensors"
    options = ("--stage", "interpolation", "--sample", "noise", "--sample-every", 2)
    assert train(tmp_path, output, *options, steps=2) == 0
    assert read_lora(output).stage == "interpolation"
    assert (tmp_path / "gaps.training" / "sheets" / "step_000002.png").exists()
    pipeline = demo_pipeline(loras=[(output, 1.0)])
    assert pipeline.models.files["keyframe"] is not None
    weight = "down_samples.0.resnet_attn_blocks.0.0.resnet_blocks.1.temporal_projection.weight"
    plain = find_models(WEIGHTS).files["interpolation"][0].tensors[weight]
    assert not torch.equal(pipeline.models.files["interpolation"][0].tensors[weight], plain)


def test_sheets_show_prompts_with_the_averages_and_leave_the_training_alone(tmp_path, clips):
    quiet, drawn = tmp_path / "quiet.safetensors", tmp_path / "drawn.safetensors"
    assert train(clips, quiet) == 0
    assert train(clips, drawn, "--sample", "a red circle zigzags", "--sample-every", 2) == 0
    a, b = load_file(quiet), load_file(drawn)
    assert all(torch.equal(a[key], b[key]) for key in a)
    with Image.open(tmp_path / "drawn.training" / "sheets" / "step_000002.png") as sheet:
        assert sheet.width >= 5 * 128


def test_check_draws_what_the_network_would_see_and_trains_nothing(tmp_path, clips, capsys):
    assert train(clips, tmp_path / "x.safetensors", "--check") == 0
    out = capsys.readouterr().out
    assert "6 clips and 0 of the prior, 6 windows in all" in out
    assert "needs about 1." in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.check.png"]
    with Image.open(tmp_path / "x.check.png") as sheet:
        assert sheet.height > 6 * 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "0"], "rank of 1 or more"),
        (["--steps", "0"], "1 or more as steps"),
        (["--size", "8"], None),
    ],
)
def test_values_that_train_nothing_are_refused(tmp_path, clips, capsys, options, message):
    status = train(clips, tmp_path / "x.safetensors", *options)
    if message is None:
        assert status == 0
        return
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_a_state_of_other_clips_is_refused(tmp_path, clips, capsys):
    output = tmp_path / "x.safetensors"
    assert train(clips, output) == 0
    other = tmp_path / "other"
    ninth.write_clips(other, 3, is_new=False)
    assert train(other, output) == 2
    assert "a training from the same start" in capsys.readouterr().err


def test_the_trained_motion_is_drawn_by_generate_and_strength_0_is_the_base(tmp_path, clips):
    output, prompt = tmp_path / "x.safetensors", "a large red circle zigzags on a black background"
    assert train(clips, output, "--learning-rate", 0.05, "--no-checkpoints") == 0
    settings, frames = Settings(fps="low", steps=3, seed=4), {}
    for strength in (None, 0.0, 1.0):
        pipeline = demo_pipeline(loras=[] if strength is None else [(output, strength)])
        frames[strength] = pipeline.generate(prompt, settings).frames
    assert torch.equal(frames[None], frames[0.0])
    assert not torch.allclose(frames[None], frames[1.0], atol=1e-3)
    clip = tmp_path / "clip.mp4"
    assert main(["generate", prompt, "-o", str(clip), "--lora", f"{output}:0.7", "--steps", "2", "--fps", "low"]) == 0
    assert clip.stat().st_size > 500
    assert main(["info", str(output)]) == 0
