"""A straight line: the smallest thing that the training loop can learn."""

import numpy as np
import torch
from torch import nn

from fusionframes.ff_kernels.training import loop


class Line(nn.Module):
    """The smallest objective: fit y = 3x - 1."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, x):
        return (self.net(x) - (3 * x - 1)).square().mean()


class NoisyLine(Line):
    """The same, with noise that the objective draws by itself."""

    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


def started(kind=Line):
    torch.manual_seed(1)
    return kind()


def train_saving_every_step(config, path):
    """Train a noisy line in a process of its own, for somebody to kill."""
    loop.SAVE_EVERY_S = 0.0
    with torch.enable_grad():
        loop.train(started(NoisyLine), draw_line, config, path, dtype=torch.float32)


def draw_line(rng, batch):
    return (torch.from_numpy(rng.standard_normal((batch, 1), dtype=np.float32)),)
