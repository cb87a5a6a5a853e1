"""Conditions that implementations of several backends share."""

import torch

from .registry import Constraint

ON_CPU = Constraint("tensors are on the CPU", lambda x, *_: x.device.type == "cpu")
CHANNELS_LAST = Constraint(
    "x is channels-last in memory", lambda x, *_: x.is_contiguous(memory_format=torch.channels_last)
)
