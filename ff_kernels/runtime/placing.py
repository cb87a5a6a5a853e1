"""A network's weights put where a plan wants them: on the device, in buffers that blocks share, or brought when called.

Weights go straight from where they lie to where they will live, one at a time, so that nothing is held twice.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from .plan import Blocks, Plan
from .streaming import Kept, Place, Source, Streamer, Visiting, places_of


class Streamable(Protocol):
    """A network that says which of its modules run one after the other, and which only once."""

    def step_blocks(self) -> list[nn.Module]:
        """Return the modules that a step calls, in their order."""

    def conditioner_modules(self) -> list[nn.Module]:
        """Return the modules that are called once per run, before the first step."""

    def layers_read_apart(self) -> list[nn.Module]:
        """Return the layers inside of blocks that are called outside of them as well."""


# By the name of a weight in the network's state dict: where its values come from, None for the network's own.
SourceOf = Callable[[str], Source | None]


def _places(network: nn.Module, dtype: torch.dtype, source_of: SourceOf | None) -> dict[tuple[int, str], Place]:
    names = {}
    for path, module in network.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            names.setdefault((id(module), name), f"{path}.{name}" if path else name)
    found = {}
    for place in places_of(network):
        key = (id(place.module), place.name)
        source = (source_of and source_of(names[key])) or place.source
        found[key] = replace(place, source=source, dtype=dtype if place.dtype.is_floating_point else place.dtype)
    return found


def _of(modules: Iterable[nn.Module], places: dict[tuple[int, str], Place]) -> list[Place]:
    keys = [
        (id(inner), name) for m in modules for inner in m.modules() for name, _ in inner.named_parameters(recurse=False)
    ]
    return [places[key] for key in dict.fromkeys(keys) if key in places]


def _parted(
    network: Streamable, places: dict[tuple[int, str], Place]
) -> tuple[list[tuple[nn.Module, list[Place]]], list[list[Place]], list[Place]]:
    """Return the visited modules with their places, the places of every block, and the rest."""
    apart = [layer for layer in network.layers_read_apart() if layer not in network.conditioner_modules()]
    visited = [(module, _of([module], places)) for module in network.conditioner_modules()]
    taken = {id(place) for _, part in visited for place in part}
    blocks = []
    for block in network.step_blocks():
        own = [place for place in _of([block], places) if id(place) not in taken]
        blocks.append(own)
    inside = {id(place) for part in blocks for place in part}
    rest = [place for place in places.values() if id(place) not in taken and id(place) not in inside]
    visited += [(layer, _of([layer], places)) for layer in apart]
    return visited, blocks, rest


def _bytes(places: Iterable[Place]) -> int:
    return sum(place.nbytes for place in places)


def blocks_of(network: Streamable, dtype: torch.dtype) -> Blocks:
    """Return the sizes that a plan needs, of a network with weights or on the meta device."""
    visited, blocks, rest = _parted(network, _places(network, dtype, None))
    apart = {id(layer) for layer in network.layers_read_apart()}
    pieces = [_bytes(part) for module, part in visited if id(module) not in apart]
    return Blocks(tuple(map(_bytes, blocks)), _bytes(rest), visited=max(pieces, default=0), prepared=sum(pieces))


def place(
    network: Streamable,
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype,
    source_of: SourceOf | None = None,
) -> AbstractContextManager:
    """Put the weights of a network where a plan wants them and return what has to be entered while it runs.

    Args:
        network: with its weights in main memory, or on the meta device where ``source_of`` has them all.
        plan: of ``plan_network`` for this network.
        device: where it runs.
        dtype: in which it computes.
        source_of: values of a weight by its name.
    """
    places = _places(network, dtype, source_of)
    visited, blocks, rest = _parted(network, places)
    streamed = set(plan.streamed)
    for part in (rest, *(part for i, part in enumerate(blocks) if i not in streamed)):
        for one in part:
            one.module.register_parameter(one.name, _brought(one, device))
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _moved(buffer, device, dtype))
    modules = network.step_blocks()
    running = [modules[i] for i in plan.streamed]
    streamer = Streamer(running, [blocks[i] for i in plan.streamed], device)
    homes = {id(inner): block for block in running for inner in block.modules()}
    apart = {id(layer) for layer in network.layers_read_apart()}
    # A layer that both prepare and a step read is at hand already where its block stays.
    visits = [(module, part) for module, part in visited if id(module) not in apart or id(module) in homes]
    stack = ExitStack()
    return _Placed(
        stack,
        streamer if running else None,
        Visiting(visits, device, lambda module: id(module) in homes and streamer.is_running(homes[id(module)])),
    )


class _Placed(AbstractContextManager):
    def __init__(self, stack: ExitStack, streamer: Streamer | None, visiting: Visiting) -> None:
        self._stack, self._parts = stack, [part for part in (streamer, visiting) if part is not None]

    def __enter__(self) -> None:
        for part in self._parts:
            self._stack.enter_context(part)

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _brought(one: Place, device: torch.device) -> nn.Parameter:
    source = one.source
    if isinstance(source, Kept) and source.tensor.device == device and source.dtype == one.dtype:
        return nn.Parameter(source.tensor, requires_grad=False)
    values = torch.empty(source.shape, dtype=one.dtype, device=device)
    if one.is_channels_last:
        values = values.contiguous(memory_format=torch.channels_last)
    source.write_into(values)
    return nn.Parameter(values, requires_grad=False)


def _moved(buffer: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    if buffer is None:
        return None
    return buffer.to(device=device, dtype=dtype if buffer.is_floating_point() else buffer.dtype)
