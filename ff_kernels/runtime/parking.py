"""Weights that only part of a run needs: on the device while it does, elsewhere for the rest."""

from collections.abc import Iterable

import torch
from torch import nn


class Parked:
    """Context manager that brings the parameters of some modules to a device and puts them back afterwards.

    The parameters stay the ones they were; inside the block the modules hold copies. May be entered again and again.

    Args:
        modules: what to move; nested modules count once.
        device: where the parameters are inside the block.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device | str) -> None:
        self.device = torch.device(device)
        inner = dict.fromkeys(inner for module in modules for inner in module.modules())
        self._places = [(module, name) for module in inner for name, value in module.named_parameters(recurse=False)]
        self._kept = [getattr(module, name) for module, name in self._places]

    def __enter__(self) -> None:
        """Bring the parameters to the device."""
        self._put([nn.Parameter(kept.to(self.device), requires_grad=False) for kept in self._kept])

    def __exit__(self, *error: object) -> None:
        """Give the modules their own parameters back; the copies are dropped."""
        self._put(self._kept)

    def _put(self, parameters: list[nn.Parameter]) -> None:
        for (module, name), parameter in zip(self._places, parameters, strict=True):
            module.register_parameter(name, parameter)


def park(modules: Iterable[nn.Module], device: torch.device) -> Parked:
    """Move the parameters of ``modules`` to the CPU and return what brings them back to ``device`` for a while."""
    modules = list(modules)
    for module in modules:
        module.to("cpu")
    return Parked(modules, device)
