from dataclasses import replace

import numpy as np
import pytest
import torch
from support.line import Line, draw_line

from fusionframes.ff_kernels.errors import CheckpointError
from fusionframes.ff_kernels.training.loop import Curriculum, TrainConfig
from fusionframes.ff_kernels.training.run_folder import TrainRun


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


CONFIG = TrainConfig(steps=200, batch=8, learning_rate=0.1, warmup=5, weight_decay=0, ema_decay=0.9)


def test_run_with_another_seed_draws_other_batches_from_a_curriculum_too(tmp_path):
    drawn = {}
    for seed in (0, 1):
        rows = drawn[seed] = []

        def draw(rng, batch, rows=rows):
            rows.append(draw_line(rng, batch)[0])
            return (rows[-1],)

        run = TrainRun(tmp_path / str(seed), torch.device("cpu"), torch.float32, seed=seed)
        run.train("line", Line(), Curriculum(lambda done, draw=draw: draw), replace(CONFIG, steps=3))
    assert len(drawn[0]) == len(drawn[1]) == 3
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))


def test_run_refuses_a_result_that_fits_nothing_of_the_objective(tmp_path):
    run = TrainRun(tmp_path, torch.device("cpu"), torch.float32)
    run.save("line", {"movq.weight": torch.ones(1), "net.bias": torch.tensor([3.0])})
    line = Line()
    run.load("line", line)
    assert line.net.bias.item() == 3
    run.save("line", {"movq.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"expected the result of stage 'other' in .*train stage other first"):
        run.load("other", line)
    with pytest.raises(CheckpointError, match=r"expected weights of Line in .*line\.safetensors, found none \(movq"):
        run.load("line", line)


def test_run_seed_changes_the_data_and_zero_keeps_the_shipped_order(tmp_path):
    def seen(seed):
        run, drawn = TrainRun(tmp_path / str(seed), torch.device("cpu"), torch.float32, 0.01, seed), []

        def draw(rng, batch):
            drawn.append(draw_line(rng, batch)[0])
            return (drawn[-1],)

        run.train("line", Line(), draw, CONFIG)
        return torch.cat(drawn)

    data = [seen(seed) for seed in range(3)]
    # The shipped weights saw the data of this order.
    assert torch.equal(data[0][:8], draw_line(np.random.default_rng([0, 7]), 8)[0])
    assert not torch.equal(data[1], data[0])
    assert not torch.equal(data[1], data[2])
