"""A straight line: the smallest thing that the training loop can learn."""

import numpy as np
import torch
from torch import nn


class Line(nn.Module):
    """The smallest objective: fit y = 3x - 1."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, x):
        return (self.net(x) - (3 * x - 1)).square().mean()


def draw_line(rng, batch):
    return (torch.from_numpy(rng.standard_normal((batch, 1), dtype=np.float32)),)
