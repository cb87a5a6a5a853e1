"""Which parameters train: the parts over time alone, as in the paper, or others by name."""

from collections.abc import Callable

from torch import nn


def freeze(objective: nn.Module, trains: Callable[[str], bool]) -> None:
    """Leave only the parameters trainable whose names ``trains`` accepts, and that were trainable before."""
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and trains(name))
