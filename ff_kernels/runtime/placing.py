"""A network's weights put where a plan wants them: on the device, in buffers that blocks share, or brought when called.

Weights go straight from where they lie to where they will live, one at a time, so that nothing is held twice.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ..ops.rounding import SCALE, Rounded
from .plan import Blocks, Plan
from .streaming import Kept, LookedUp, Place, Source, Streamer, Visiting, places_of


class Streamable(Protocol):
    """A network that says which of its modules run one after the other, and which only once."""

    def step_blocks(self) -> list[nn.Module]:
        """Return the modules that a step calls, in their order."""

    def conditioner_modules(self) -> list[nn.Module]:
        """Return the modules that are called once per run, before the first step."""

    def layers_read_apart(self) -> list[nn.Module]:
        """Return the layers inside of blocks that are called outside of them as well."""

    def looked_up(self) -> list[nn.Module]:
        """Return the tables of which a call reads a few rows, and which stay in main memory."""


# From a parameter of the network to where else its values lie; None for nowhere else.
SourceOf = Callable[[Tensor], Source | None]
# From a weight that waits in main memory to the memory that it waits in, as pinned memory.
Hold = Callable[[Tensor], Tensor]


def _places(network: nn.Module, dtype: torch.dtype) -> dict[tuple[int, str], Place]:
    tables = {id(inner) for table in network.looked_up() for inner in table.modules()}
    found = {}
    for place in places_of(network):
        if id(place.module) not in tables:
            found[id(place.module), place.name] = replace(_widened(place, dtype), dtype=dtype)
    return found


def _widened(place: Place, dtype: torch.dtype) -> Place:
    """Return a place that knows the scale of a weight which lies in 8 bit."""
    if place.dtype is not torch.int8:
        return place
    return replace(place, source=Rounded(place.source.tensor, getattr(place.module, SCALE), dtype))


def _read_anew(place: Place, source_of: SourceOf | None) -> Place:
    """Return a place that is filled from the file where its values lie in one.

    The values of a network's parameter may lie nowhere else: those of packed files are on the meta device.
    """
    parameter = getattr(place.module, place.name)
    if isinstance(place.source, Rounded) and parameter.dtype is not torch.int8:
        return place
    source = source_of and source_of(parameter)
    return replace(place, source=source) if source else place


def _held(place: Place, hold: Hold) -> Place:
    """Return a place whose values wait ready to be copied, in the dtype that is wanted."""
    if isinstance(place.source, Rounded):
        return replace(place, source=place.source.moved(torch.device("cpu"), hold))
    return replace(place, source=Kept(hold(place.brought(torch.device("cpu")).data)))


def _on_device(place: Place, device: torch.device) -> Place:
    """Return a place whose values wait on the device that they are wanted on."""
    if isinstance(place.source, Rounded):
        return replace(place, source=place.source.moved(device))
    return replace(place, source=Kept(place.brought(device).data))


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
    """Return the sizes that a plan needs, of a network with weights or on the meta device.

    Args:
        network: the network.
        dtype: in which it computes.
    """
    visited, blocks, rest = _parted(network, _places(network, dtype))
    apart = {id(layer) for layer in network.layers_read_apart()}
    pieces = [_bytes(part) for module, part in visited if id(module) not in apart]
    packed = tuple(
        sum(map(_kept_bytes, part)) if any(isinstance(one.source, Rounded) for one in part) else 0 for part in blocks
    )
    return Blocks(
        tuple(map(_bytes, blocks)), _bytes(rest), visited=max(pieces, default=0), prepared=sum(pieces),
        packed=packed if any(packed) else (),
    )  # fmt: skip


def _kept_bytes(place: Place) -> int:
    return place.source.nbytes if isinstance(place.source, Rounded) else place.nbytes


def place(
    network: Streamable,
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype,
    *,
    source_of: SourceOf | None = None,
    hold: Hold | None = None,
) -> AbstractContextManager:
    """Put the weights of a network where a plan wants them and return what has to be entered while it runs.

    Args:
        network: with its weights in main memory, mapped from their file or not.
        plan: of ``plan_network`` for this network.
        device: where it runs.
        dtype: in which it computes.
        source_of: where a weight lies in a file, read where the plan lets weights wait in the file; the others are
            left in main memory.
        hold: memory for weights that wait in main memory; default: they stay where they are.
    """
    places = {
        key: _read_anew(one, source_of) if getattr(one.module, one.name).is_meta else one
        for key, one in _places(network, dtype).items()
    }
    visited, blocks, rest = _parted(network, places)
    modules = network.step_blocks()
    through = sorted({*plan.streamed, *plan.widened})
    running = [modules[i] for i in through]
    passing = []
    for i in through:
        part = blocks[i]
        if i not in plan.streamed:
            part = [_on_device(one, device) for one in part]
        elif plan.waiting == "file":
            part = [_read_anew(one, source_of) for one in part]
        elif hold is not None:
            part = [_held(one, hold) for one in part]
        passing.append(part)
    for part in (rest, *(part for i, part in enumerate(blocks) if i not in through)):
        for one in part:
            one.module.register_parameter(one.name, one.brought(device))
    tables = {id(inner) for table in network.looked_up() for inner in table.modules()}
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if id(module) not in tables and name != SCALE:
                setattr(module, name, _moved(buffer, device, dtype))
    streamer = Streamer(running, passing, device)
    homes = {id(inner): block for block in running for inner in block.modules()}
    apart = {id(layer) for layer in network.layers_read_apart()}
    # A layer that both prepare and a step read is at hand already where its block stays.
    visits = [(module, part) for module, part in visited if id(module) not in apart or id(module) in homes]
    if plan.waiting == "file":
        # Pages of a mapped file that were read stay in the memory of the process.
        visits = [(module, [_read_anew(one, source_of) for one in part]) for module, part in visits]
    visiting = Visiting(visits, device, lambda m: id(m) in homes and streamer.is_running(homes[id(m)]))
    return _Placed([*([streamer] if running else []), visiting, LookedUp(network.looked_up(), device, dtype)])


class _Placed(AbstractContextManager):
    def __init__(self, parts: list[AbstractContextManager]) -> None:
        self._stack, self._parts = ExitStack(), parts

    def __enter__(self) -> None:
        for part in self._parts:
            self._stack.enter_context(part)

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _moved(buffer: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    if buffer is None:
        return None
    return buffer.to(device=device, dtype=dtype if buffer.is_floating_point() else buffer.dtype)
