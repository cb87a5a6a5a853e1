from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fusionframes.ff_kernels.checkpoints.folder import find_models
from fusionframes.ff_kernels.demo import batches, recipe
from fusionframes.ff_kernels.demo import steps as stages
from fusionframes.ff_kernels.demo.start.latents import fit_latents_to_range
from fusionframes.ff_kernels.demo.train import main
from fusionframes.ff_kernels.demo.world.scenes import is_held_out, reversed_scene
from fusionframes.ff_kernels.errors import CheckpointError
from fusionframes.ff_kernels.models.interpolation_unet import InterpolationUNet
from fusionframes.ff_kernels.models.masked_unet import MaskedUNet
from fusionframes.ff_kernels.models.movq import MoVQ
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.sampling.gaps import join_gaps
from fusionframes.ff_kernels.stages.tokenizer import Tokenizer
from fusionframes.ff_kernels.training import losses as objectives
from fusionframes.ff_kernels.training.initial import initialise
from fusionframes.ff_kernels.training.loop import Course, Fit, fingerprint, learning_rate_at, train


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


class Line(nn.Module):
    """The smallest objective: fit y = 3x - 1."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, x):
        return (self.net(x) - (3 * x - 1)).square().mean()


def draw_line(rng, batch):
    return (torch.from_numpy(rng.standard_normal((batch, 1), dtype=np.float32)),)


def draw_nothing(rng, batch):
    return (torch.zeros(batch, 1),)


FIT = Fit(steps=200, batch=8, learning_rate=0.1, warmup=5, weight_decay=0, average=0.9)
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


class NoisyLine(Line):
    """The same, with noise that the objective draws by itself."""

    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


def started(kind=Line):
    torch.manual_seed(1)
    return kind()


def fitted(path, steps_first=None, kind=Line):
    line = started(kind)
    if steps_first:
        # Stop early by raising from the data, as a killed run would.
        calls = []

        def draw(rng, batch):
            calls.append(0)
            if len(calls) > steps_first:
                raise KeyboardInterrupt
            return draw_line(rng, batch)

        with pytest.raises(KeyboardInterrupt):
            train(line, draw, FIT, path, **CPU)
        line = started(kind)
    return train(line, draw_line, FIT, path, **CPU)


def test_train_learns_and_keeps_the_average(tmp_path):
    weights = fitted(tmp_path / "line.pt")
    assert weights["net.weight"].item() == pytest.approx(3, abs=0.1)
    assert weights["net.bias"].item() == pytest.approx(-1, abs=0.1)


def test_train_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr("fusionframes.ff_kernels.training.loop.SAVE_EVERY_S", 0.0)
    quiet = fitted(tmp_path / "quiet.pt")
    whole = fitted(tmp_path / "whole.pt", kind=NoisyLine)
    resumed = fitted(tmp_path / "resumed.pt", steps_first=25, kind=NoisyLine)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not any(torch.equal(whole[key], quiet[key]) for key in whole)


def test_train_refuses_a_state_of_other_start_weights_or_of_more_steps(tmp_path):
    path = tmp_path / "line.pt"
    fitted(path)
    before = path.read_bytes()
    other = started()
    with torch.no_grad():
        other.net.bias += 1e-6
    with pytest.raises(CheckpointError, match=r"line\.pt to hold a training from the same start weights.*remove it"):
        train(other, draw_line, FIT, path, **CPU)
    with pytest.raises(CheckpointError, match=r"expected at most 199 steps in .*line\.pt, found 200: remove it"):
        train(started(), draw_line, replace(FIT, steps=199), path, **CPU)
    assert path.read_bytes() == before


def test_fingerprint_changes_with_any_name_shape_or_value():
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others = [
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.full((1,), 1.0001)},
        {"a": torch.zeros(2, 3)},
    ]
    assert fingerprint(weights) == fingerprint(dict(reversed(weights.items())))
    assert len({fingerprint(each) for each in (weights, *others)}) == 5


def test_learning_rate_at_warms_up_and_falls_to_zero():
    rates = [learning_rate_at(step, FIT) for step in range(FIT.steps)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == 1
    assert rates[-1] < 0.01


def test_learning_rate_at_stays_where_it_does_not_fall():
    fit = replace(FIT, falls=False)
    assert [learning_rate_at(step, fit) for step in (4, 50, FIT.steps - 1)] == [1, 1, 1]


def test_train_asks_a_course_for_the_batches_of_every_step(tmp_path):
    shares = []

    def at(done):
        shares.append(done)
        return draw_line

    torch.manual_seed(1)
    course = train(Line(), Course(at), FIT, tmp_path / "course.pt", **CPU)
    assert shares == [step / FIT.steps for step in range(FIT.steps)]
    torch.manual_seed(1)
    plain = train(Line(), draw_line, FIT, tmp_path / "plain.pt", **CPU)
    torch.manual_seed(1)
    other = train(
        Line(), Course(lambda done: draw_line if done < 0.5 else draw_nothing), FIT, tmp_path / "other.pt", **CPU
    )
    assert all(torch.equal(course[key], plain[key]) for key in plain)
    assert not all(torch.allclose(other[key], plain[key], atol=1e-3) for key in plain)


def test_keyframe_noise_of_a_perfect_network_is_zero_error_whatever_clip_is_shown():
    objective = stages.keyframe_objective()
    latents, noise, shown = torch.randn(3, 3, 5, 4, 4, 4)
    shown[:2] = latents[:2]
    bar = torch.tensor([0.3, 0.01, 0.01])
    share = bar[:, None, None, None, None]
    seen = []

    def perfect(x, conditions):
        seen.append(x.unflatten(0, (3, 5)))
        out = (seen[-1] - share.sqrt() * latents) / (1 - share).sqrt()
        return (out + error).flatten(0, 1)

    objective.unet.forward = perfect
    ids = torch.tensor([[5, 1, 0]]).expand(3, 3)
    mask = torch.tensor([[1, 1, 0]]).expand(3, 3)
    args = (ids, mask, torch.ones(3, dtype=torch.bool), torch.tensor([300, 900, 900]), bar, shown)
    error = 0.0
    assert objective(latents, noise, *args).item() == pytest.approx(0, abs=1e-10)
    assert torch.allclose(seen[0], share.sqrt() * shown + (1 - share).sqrt() * noise)
    # An error of the noise weighs as the error of v that it makes, up to a limit where there is something to guess.
    error = 0.2
    expected = (0.04 * torch.tensor([1 / 0.3, objectives.MAX_WEIGHT, 1 / 0.01])).mean().item()
    assert objective(latents, noise, *args).item() == pytest.approx(expected, rel=1e-4)
    # What opposites have wrong alike weighs no more than alone; what they have wrong against each other does.
    opposite = torch.tensor([0, 1, -1])
    assert objective(latents, noise, *args, opposite).item() == pytest.approx(expected, rel=1e-4)
    error = 0.2 * torch.tensor([1.0, 1.0, -1.0])[:, None, None, None, None]
    expected += 0.04 * objectives.CONTRAST * (objectives.MAX_WEIGHT + 1 / 0.01) / 3
    assert objective(latents, noise, *args, opposite).item() == pytest.approx(expected, rel=1e-4)


def test_draw_scene_never_draws_a_held_out_combination_nor_the_reverse_of_one():
    rng = np.random.default_rng(0)
    drawn = [batches.draw_scene(rng) for _ in range(500)]
    assert not any(is_held_out(scene) or is_held_out(reversed_scene(scene)) for scene in drawn)


def test_workshop_with_another_seed_draws_other_batches_from_a_course_too(tmp_path):
    drawn = {}
    for seed in (0, 1):
        rows = drawn[seed] = []

        def draw(rng, batch, rows=rows):
            rows.append(draw_line(rng, batch)[0])
            return (rows[-1],)

        shop = stages.Workshop(tmp_path / str(seed), CPU["device"], CPU["dtype"], seed=seed)
        shop.train("line", Line(), Course(lambda done, draw=draw: draw), replace(FIT, steps=3))
    assert len(drawn[0]) == len(drawn[1]) == 3
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))


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


def test_initialise_leaves_the_video_decoder_equal_to_the_image_decoder():
    with torch.no_grad():
        image = MoVQ(recipe.MOVQ)
        flags = {"temporal": True, "temporal_kernel_size": (3, 1, 1)}
        video = initialise(MoVQ(replace(recipe.MOVQ, **flags)))
        video.load_state_dict(image.state_dict(), strict=False)
        latents = torch.randn(3, 4, 4, 4)
        assert torch.allclose(video.decode(latents), image.decode(latents), atol=1e-5)


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


def test_gap_velocity_of_a_perfect_network_is_zero_error():
    objective = objectives.GapVelocity(initialise(InterpolationUNet(recipe.INTERPOLATION)))
    keyframes, inner, noise = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 2, 12, 4, 4), torch.randn(2, 2, 12, 4, 4)
    bar = torch.tensor([0.3, 0.8])
    wanted = bar.sqrt()[:, None, None, None, None] * noise - (1 - bar).sqrt()[:, None, None, None, None] * inner
    objective.unet.forward = lambda x, conditions: wanted.flatten(0, 1)
    args = (torch.ones(2), torch.tensor([3, 1]), torch.tensor([0, 9]), torch.tensor([20, 40]), bar)
    assert objective(keyframes, inner, noise, *args).item() == pytest.approx(0, abs=1e-10)


def test_masked_velocity_of_a_perfect_network_is_zero_error():
    objective = objectives.MaskedVelocity(initialise(MaskedUNet(recipe.MASKED)))
    keyframes, groups, noise = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 2, 5, 4, 4, 4), torch.randn(2, 2, 5, 4, 4, 4)
    bar = torch.tensor([0.3, 0.8])
    share = bar[:, None, None, None, None, None]
    seen = []

    def perfect(x, conditions):
        seen.append(x)
        return (share.sqrt() * noise - (1 - share).sqrt() * groups).flatten(0, 2)

    objective.unet.forward = perfect
    args = (torch.tensor([1.0, 0.0]), torch.tensor([3, 1]), torch.tensor([0, 9]), torch.tensor([20, 40]), bar)
    assert objective(keyframes, groups, noise, *args).item() == pytest.approx(0, abs=1e-10)
    x = seen[0].unflatten(0, (2, 2, 5))
    assert torch.equal(x[0, 1, 0, 4:8], keyframes[0, 1])
    assert torch.equal(x[0, 1, 4, 4:8], keyframes[0, 2])
    assert x[0, 1, :, 8].mean(dim=(1, 2)).tolist() == [1, 0, 0, 0, 1]
    # A clip whose keyframes are dropped is shown neither frames nor mask.
    assert not x[1, :, :, 4:].any()


def test_draw_groups_draws_the_clips_of_draw_gaps():
    windows = torch.randn(3, 17, 4, 2, 2)
    clips = {skip: batches.LatentClips(windows.half(), (batches.TRAINING_SCENES[0],) * 3) for skip in (1, 3)}
    for seed in range(5):
        gaps = batches.draw_gaps(np.random.default_rng(seed), 4, clips)
        groups = batches.draw_groups(np.random.default_rng(seed), 4, clips)
        assert torch.equal(gaps[0], groups[0])
        assert torch.equal(gaps[1], groups[1][:, :, 1:4].flatten(2, 3))
        assert all(torch.equal(a, b) for a, b in zip(gaps[3:6], groups[3:6], strict=True))


def test_workshop_refuses_a_result_that_fits_nothing_of_the_objective(tmp_path):
    shop = stages.Workshop(tmp_path, torch.device("cpu"), torch.float32)
    shop.save("line", {"movq.weight": torch.ones(1), "net.bias": torch.tensor([3.0])})
    line = Line()
    shop.load("line", line)
    assert line.net.bias.item() == 3
    shop.save("line", {"movq.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"expected the result of stage 'other' in .*run --stage other first"):
        shop.load("other", line)
    with pytest.raises(CheckpointError, match=r"expected weights of Line in .*line\.safetensors, found none \(movq"):
        shop.load("line", line)


def test_workshop_seed_changes_the_data_and_zero_keeps_the_shipped_order(tmp_path):
    def seen(seed):
        shop, drawn = stages.Workshop(tmp_path / str(seed), torch.device("cpu"), torch.float32, 0.01, seed), []

        def draw(rng, batch):
            drawn.append(draw_line(rng, batch)[0])
            return (drawn[-1],)

        shop.train("line", Line(), draw, FIT)
        return torch.cat(drawn)

    data = [seen(seed) for seed in range(3)]
    # The shipped weights saw the data of this order.
    assert torch.equal(data[0][:8], draw_line(np.random.default_rng([0, 7]), 8)[0])
    assert not torch.equal(data[1], data[0])
    assert not torch.equal(data[1], data[2])


@pytest.mark.parametrize(
    "flags",
    [
        {"temporal": True, "temporal_kernel_size": (3, 1, 1), "temporal_attention_block": True},
        {"temporal_blocks": True, "temporal_attention_block": True},
    ],
)
def test_initialise_leaves_every_video_decoder_equal_to_the_image_decoder(flags):
    with torch.no_grad():
        image = MoVQ(recipe.MOVQ)
        video = initialise(MoVQ(replace(recipe.MOVQ, **flags)))
        video.load_state_dict(image.state_dict(), strict=False)
        latents = torch.randn(3, 4, 4, 4)
        assert torch.allclose(video.decode(latents), image.decode(latents), atol=1e-5)


def test_train_tokenizer_covers_every_caption_word():
    tokenizer = Tokenizer(stages.train_tokenizer())
    from fusionframes.ff_kernels.demo.world.scenes import caption_corpus

    for caption in caption_corpus(3, 200):
        assert tokenizer.processor.unk_id() not in tokenizer.encode(caption).ids


def test_every_stage_runs_from_nothing_to_a_model_that_generates(tmp_path):
    # Each stage for real, at a thousandth of its length: the weights are useless, the files must fit together.
    shop = stages.Workshop(tmp_path, torch.device("cpu"), torch.float32, share=0.001)
    for stage in stages.STAGES:
        stages.run_stage(stage, shop)
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
        stages.run_stage(stage, shop)
    assert results == {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}


@pytest.mark.parametrize(("stage", "last"), [("movq", "fit_latents_to_range"), ("text", "spread_projection")])
def test_a_stage_killed_before_its_last_step_leaves_no_result(tmp_path, monkeypatch, stage, last):
    def kill(*_):
        raise KeyboardInterrupt

    shop = stages.Workshop(tmp_path, torch.device("cpu"), torch.float32, share=0.001)
    with monkeypatch.context() as patch:
        patch.setattr(stages, last, kill)
        with pytest.raises(KeyboardInterrupt):
            stages.run_stage(stage, shop)
    assert not shop.result(stage).exists()
    stages.run_stage(stage, shop)
    assert shop.result(stage).exists()


def test_workshop_encodes_clips_anew_for_another_count_or_movq(tmp_path):
    shop, encoded = stages.Workshop(tmp_path, torch.device("cpu"), torch.float32), []

    def encode(movq, count):
        encoded.append(count)
        return batches.LatentClips(torch.full((count, 1), float(len(encoded))), (batches.TRAINING_SCENES[0],) * count)

    first, second = (initialise(MoVQ(recipe.MOVQ)) for _ in range(2))
    for movq, count, expected in ((first, 2, 1), (first, 2, 1), (first, 3, 2), (second, 3, 3), (second, 3, 3)):
        clips = shop.clips("some", movq, count, encode)
        assert clips.latents.tolist() == [[expected]] * count
        assert clips.scenes == (batches.TRAINING_SCENES[0],) * count
    assert encoded == [2, 3, 3]


@pytest.mark.parametrize("stage", ["decoder", "start", "finish", "export"])
def test_training_command_says_which_stage_is_missing_and_leaves_nothing(tmp_path, capsys, stage):
    with pytest.raises(SystemExit) as stop:
        main(["--output", str(tmp_path / "shop"), "--stage", stage])
    assert stop.value.code == 2
    assert "first" in capsys.readouterr().err
    assert not list((tmp_path / "shop").rglob("*.safetensors"))
    assert not (tmp_path / "shop" / "weights").exists()


def test_picture_error_adds_squares_of_pixels_and_of_differences():
    a = torch.zeros(1, 1, 2, 2)
    b = torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]])
    # Pixels differ by 0 and 2, neighbours in a row by 2, neighbours in a column by nothing.
    assert objectives.picture_error(a, b).item() == pytest.approx(1 + 2)
    assert objectives.picture_error(a, b, squared=0.5).item() == pytest.approx(1 + 2 + 0.5 * (2 + 4))
