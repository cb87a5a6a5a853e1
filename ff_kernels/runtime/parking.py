"""Weights that only part of a run needs: on the device while it does, elsewhere for the rest."""

from collections.abc import Iterable

import torch
from torch import nn

Places = list[tuple[nn.Module, str]]


class Parked:
    """Context manager that brings the parameters of some modules to a device and puts them back afterwards.

    The parameters stay the ones they were; inside the block the modules hold copies. May be entered again and again.

    Args:
        modules: what to move; nested modules count once.
        device: where the parameters are inside the block.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._places = _places_of(modules)
        self._kept = [getattr(module, name) for module, name in self._places]

    def __enter__(self) -> None:
        """Bring the parameters to the device."""
        _put(self._places, [_copy(kept, self.device) for kept in self._kept])

    def __exit__(self, *error: object) -> None:
        """Give the modules their own parameters back; the copies are dropped."""
        _put(self._places, self._kept)


def park(modules: Iterable[nn.Module], device: torch.device) -> Parked:
    """Put the parameters of ``modules`` on the CPU and return what brings them to ``device`` for a while."""
    modules = list(modules)
    places = _places_of(modules)
    _put(places, [_copy(getattr(module, name), torch.device("cpu")) for module, name in places])
    return Parked(modules, device)


def _places_of(modules: Iterable[nn.Module]) -> Places:
    inner = dict.fromkeys(inner for module in modules for inner in module.modules())
    return [(module, name) for module in inner for name, _ in module.named_parameters(recurse=False)]


def _copy(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    # A new parameter: setting the data of one that was made in inference mode is allowed only there.
    return nn.Parameter(parameter.detach().to(device), requires_grad=False)


def _put(places: Places, parameters: list[nn.Parameter]) -> None:
    for (module, name), parameter in zip(places, parameters, strict=True):
        module.register_parameter(name, parameter)
