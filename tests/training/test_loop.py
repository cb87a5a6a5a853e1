import multiprocessing
import os
import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.line import Line, NoisyLine, draw_line, started, train_saving_every_step

from fusionframes.ff_kernels.errors import CheckpointError, TrainingError
from fusionframes.ff_kernels.training.loop import Curriculum, TrainConfig, fingerprint, learning_rate_at, train


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


def draw_nothing(rng, batch):
    return (torch.zeros(batch, 1),)


CONFIG = TrainConfig(steps=200, batch=8, learning_rate=0.1, warmup=5, weight_decay=0, ema_decay=0.9)
CPU = {"dtype": torch.float32}


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
            train(line, draw, CONFIG, path, **CPU)
        line = started(kind)
    return train(line, draw_line, CONFIG, path, **CPU)


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
        train(other, draw_line, CONFIG, path, **CPU)
    with pytest.raises(CheckpointError, match=r"expected at most 199 steps in .*line\.pt, found 200: remove it"):
        train(started(), draw_line, replace(CONFIG, steps=199), path, **CPU)
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
    rates = [learning_rate_at(step, CONFIG) for step in range(CONFIG.steps)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == 1
    assert rates[-1] < 0.01


def test_learning_rate_at_stays_where_it_does_not_fall():
    config = replace(CONFIG, cosine=False)
    assert [learning_rate_at(step, config) for step in (4, 50, CONFIG.steps - 1)] == [1, 1, 1]


def test_train_asks_a_curriculum_for_the_batches_of_every_step(tmp_path):
    shares = []

    def at(done):
        shares.append(done)
        return draw_line

    torch.manual_seed(1)
    curriculum = train(Line(), Curriculum(at), CONFIG, tmp_path / "curriculum.pt", **CPU)
    assert shares == [step / CONFIG.steps for step in range(CONFIG.steps)]
    torch.manual_seed(1)
    plain = train(Line(), draw_line, CONFIG, tmp_path / "plain.pt", **CPU)
    torch.manual_seed(1)
    other = train(
        Line(), Curriculum(lambda done: draw_line if done < 0.5 else draw_nothing), CONFIG, tmp_path / "other.pt", **CPU
    )
    assert all(torch.equal(curriculum[key], plain[key]) for key in plain)
    assert not all(torch.allclose(other[key], plain[key], atol=1e-3) for key in plain)


class Poisoned(Line):
    """Whose loss is no number at one step, as a clip of broken pixels would make it."""

    def forward(self, x):
        return super().forward(x) * (float("nan") if x.max() > 2.2 else 1)


def test_train_stops_at_a_loss_that_is_no_number_and_keeps_the_state_before_it(tmp_path):
    path = tmp_path / "line.pt"
    with pytest.raises(
        TrainingError, match=r"finite loss and gradient at step (\d+), got nan.*step (\d+) is kept"
    ) as stop:
        train(started(Poisoned), draw_line, CONFIG, path, **CPU)
    state = torch.load(path, weights_only=True)
    assert f"step {state['step'] + 1}," in str(stop.value)
    assert state["step"] > 3
    assert all(value.isfinite().all() for value in state["weights"].values())
    # Without the bad clip it goes on to where it would have come without the stop.
    assert train(started(), draw_line, CONFIG, path, **CPU)
    whole = train(started(), draw_line, CONFIG, tmp_path / "whole.pt", **CPU)
    resumed = torch.load(path, weights_only=True)["averages"]
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_train_stops_where_it_is_asked_to_and_tells_every_step(tmp_path):
    seen = []

    def on_step(training):
        seen.append((training.step, training.last["loss"]))
        return training.step == 7

    train(started(), draw_line, CONFIG, tmp_path / "line.pt", on_step=on_step, **CPU)
    assert [step for step, _ in seen] == [*range(1, 8)]
    assert seen[-1][1] < seen[0][1]
    assert torch.load(tmp_path / "line.pt", weights_only=True)["step"] == 7


def test_accumulated_batches_are_one_large_batch(tmp_path):
    # The same eight numbers in one batch, and in two of four.
    config = replace(CONFIG, steps=20)
    numbers = draw_line(np.random.default_rng(3), 8)[0]
    halves = iter([numbers[:4], numbers[4:]] * 20)
    large = train(started(), lambda rng, batch: (numbers,), config, tmp_path / "a.pt", **CPU)
    parts = replace(config, batch=4, accumulate=2)
    small = train(started(), lambda rng, batch: (next(halves),), parts, tmp_path / "b.pt", **CPU)
    assert all(torch.allclose(large[key], small[key], atol=1e-5) for key in large)


def written(path):
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to start twenty runs without twenty imports of torch")
def test_train_killed_at_twenty_random_moments_ends_with_the_numbers_of_an_uninterrupted_run(tmp_path):
    # A server's forks, not this process's: autograd refuses to run behind a fork once a card has worked beside it.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["fusionframes.ff_kernels.training.loop"])
    # A rate that does not fall, so that the end may be chosen after the kills.
    config, path = replace(CONFIG, steps=4000, cosine=False), tmp_path / "killed.pt"
    rng, steps = random.Random(0), []
    for _ in range(20):
        before = written(path)
        child = server.Process(target=train_saving_every_step, args=(config, path))
        child.start()
        # Not before it has come further, however slow the machine; then at any moment of a step or of a write.
        deadline = time.monotonic() + 60
        while written(path) == before and time.monotonic() < deadline:
            assert child.is_alive(), "the training ended by itself"
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        child.join()
        steps.append(torch.load(path, weights_only=True)["step"])
    assert len(set(steps)) > 5
    assert steps == sorted(steps)
    config = replace(config, steps=steps[-1] + 5)
    resumed = train(started(NoisyLine), draw_line, config, path, **CPU)
    whole = train(started(NoisyLine), draw_line, config, tmp_path / "whole.pt", **CPU)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
