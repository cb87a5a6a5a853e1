"""One of several processes that train together."""

import os
from dataclasses import replace

import torch

from fusionframes.ff_kernels.errors import CheckpointError, InputError, TrainingError
from fusionframes.ff_kernels.training.loop import TrainConfig, train
from fusionframes.ff_kernels.training.processes import join_processes

from .line import NoisyLine, draw_line, started

CONFIG = TrainConfig(steps=60, batch=4, learning_rate=0.1, warmup=5, weight_decay=0, ema_decay=0.9, accumulate=4)
COMMON = {"dtype": torch.float32}


class NumberlessOnce(NoisyLine):
    """Whose loss is no number for one batch of very few."""

    def forward(self, x):
        return super().forward(x) * (float("nan") if x.max() > 2.9 else 1)


def train_as_one_of(rank, count, folder):
    """Train a line in all the ways that are tested, in one start of the processes, and leave what this one saw."""
    device = torch.device("cpu")
    variables = {"WORLD_SIZE": str(count)}
    os.environ.update(RANK=str(rank), MASTER_ADDR="127.0.0.1", **variables)
    seen = {}
    with torch.enable_grad(), join_processes(device, variables) as processes:
        common = {**COMMON, "processes": processes}
        seen["whole"] = train(started(NoisyLine), draw_line, CONFIG, folder / "whole.pt", **common)

        def stop_at_seven(training):
            # A signal that reaches one process only.
            return rank == 1 and training.step == 7

        train(started(NoisyLine), draw_line, CONFIG, folder / "parted.pt", on_step=stop_at_seven, **common)
        seen["resumed"] = train(started(NoisyLine), draw_line, CONFIG, folder / "parted.pt", **common)
        try:
            train(started(NumberlessOnce), draw_line, replace(CONFIG, steps=400), folder / "nan.pt", **common)
        except TrainingError as error:
            seen["nan"] = str(error)
        try:
            for _ in range(2):
                train(started(NoisyLine), draw_line, CONFIG, folder / f"of_{rank}.pt", **common)
        except CheckpointError as error:
            seen["unshared"] = str(error)
        try:
            processes.share(3)
        except InputError as error:
            seen["uneven"] = str(error)
    torch.save(seen, folder / f"seen_{rank}.pt")
