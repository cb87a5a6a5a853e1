"""Weights that pass through a device: a module has them while it runs, and gives the room to the next one.

Two buffers take turns. While a block computes from one, the next block's weights are copied into the other by a stream
of their own; two events per turn keep the order: no block reads a buffer before it is filled, none is filled before
the block that read it last is done. Hooks of ``nn.Module`` do it, so the networks know nothing of it. A layer whose
weight is read without calling the layer has to lie inside of a block that is called.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

# Kernels load 16 bytes at once, and the vendor's libraries want more.
ALIGNMENT = 256


class Source(Protocol):
    """Where the values of a weight come from: main memory or a file."""

    shape: torch.Size
    dtype: torch.dtype

    def write_into(self, out: Tensor) -> None:
        """Copy the values into ``out``, which has the shape and may have another dtype and device."""


@dataclass(frozen=True)
class Kept:
    """A weight that waits in main memory, or in the pages of a mapped file."""

    tensor: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype as kept."""
        return self.tensor.dtype

    def write_into(self, out: Tensor) -> None:
        """Copy; from pinned memory the call returns before the copy is done."""
        out.copy_(self.tensor, non_blocking=True)


@dataclass(frozen=True)
class Place:
    """One parameter of a module that is filled from a source.

    Attributes:
        module: owner of the parameter.
        name: under which it has it.
        source: its values.
        dtype: in which it is computed with.
        is_channels_last: whether the 4-D weight lies channels-last, as folding leaves it.
    """

    module: nn.Module
    name: str
    source: Source
    dtype: torch.dtype
    is_channels_last: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes on the device, up to the next aligned address."""
        size = self.source.shape.numel() * self.dtype.itemsize
        return -(-size // ALIGNMENT) * ALIGNMENT

    def brought(self, device: torch.device) -> nn.Parameter:
        """Return the parameter in memory of its own on a device, or the kept one if it is there as it is wanted."""
        source = self.source
        if isinstance(source, Kept) and source.tensor.device == device and source.dtype == self.dtype:
            return nn.Parameter(source.tensor, requires_grad=False)
        values = torch.empty(source.shape, dtype=self.dtype, device=device)
        if self.is_channels_last:
            values = values.contiguous(memory_format=torch.channels_last)
        source.write_into(values)
        return nn.Parameter(values, requires_grad=False)

    def view(self, buffer: Tensor, start: int) -> nn.Parameter:
        """Return the parameter at byte ``start`` of a flat ``uint8`` buffer."""
        size = self.source.shape.numel() * self.dtype.itemsize
        flat = buffer[start : start + size].view(self.dtype)
        if self.is_channels_last:
            n, c, h, w = self.source.shape
            return nn.Parameter(flat.view(n, h, w, c).permute(0, 3, 1, 2), requires_grad=False)
        return nn.Parameter(flat.view(self.source.shape), requires_grad=False)


def places_of(module: nn.Module) -> list[Place]:
    """Return the parameters of a module and of all inside it, each with its present values as the source."""
    found: dict[tuple[int, str], Place] = {}
    for inner in module.modules():
        for name, parameter in inner.named_parameters(recurse=False):
            kept = parameter.detach()
            last = kept.ndim == 4 and not kept.is_contiguous() and kept.is_contiguous(memory_format=torch.channels_last)
            found.setdefault((id(inner), name), Place(inner, name, Kept(kept), kept.dtype, last))
    return list(found.values())


class Order(Protocol):
    """Keeps copies and computation in order; an event is whatever it hands out."""

    def copy(self, fill: Callable[[], None], after: Any) -> Any:
        """Run ``fill`` once the work marked by ``after`` (None: nothing) is done; return the event of its end."""

    def wait(self, filled: Any) -> None:
        """Let what is computed from here on wait for a copy."""

    def mark(self) -> Any:
        """Return the event of all that has been given to compute so far."""


class InTurn:
    """Copies at once, in the stream that computes: for devices without streams of their own."""

    def copy(self, fill: Callable[[], None], after: Any) -> None:
        """Copy now."""
        fill()

    def wait(self, filled: Any) -> None:
        """Nothing to wait for."""

    def mark(self) -> None:
        """Nothing to mark."""


class CopyStream:
    """Copies beside the computation, on a device whose module in torch has streams (CUDA, XPU, NPU).

    Args:
        device: where the buffers are.
    """

    def __init__(self, device: torch.device) -> None:
        self._module = torch.get_device_module(device)
        self._device, self._stream = device, self._module.Stream(device=device)

    def copy(self, fill: Callable[[], None], after: Any) -> Any:
        """Copy in the stream of copies, after the last reader of the buffer."""
        with self._module.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            fill()
            filled = self._module.Event()
            filled.record(self._stream)
        return filled

    def wait(self, filled: Any) -> None:
        """Let the computing stream wait."""
        self._module.current_stream(self._device).wait_event(filled)

    def mark(self) -> Any:
        """Mark the computing stream."""
        done = self._module.Event()
        done.record(self._module.current_stream(self._device))
        return done


def order_on(device: torch.device) -> Order:
    """Return what keeps the order on a device."""
    module = None if device.type in ("cpu", "mps") else getattr(torch, device.type, None)
    return CopyStream(device) if hasattr(module, "Stream") and hasattr(module, "Event") else InTurn()


@dataclass
class _Slot:
    buffer: Tensor
    holds: int | None = None
    filled: Any = None
    used: Any = None


class Streamer:
    """Runs blocks of a network from buffers that they share.

    Enter it before the network runs and leave it afterwards; outside, the blocks' parameters are on the meta device.

    Args:
        blocks: the parameters of each block, in the order in which the blocks run; the first one follows the last.
        modules: the block modules, whose call brings the weights.
        device: where the buffers are.
        slots: buffers, 2 or more for copies beside the computation.
        order: default by the device.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        blocks: Sequence[Sequence[Place]],
        device: torch.device,
        *,
        slots: int = 2,
        order: Order | None = None,
    ) -> None:
        self._modules, self._blocks, self._device = list(modules), [list(places) for places in blocks], device
        self._count = min(slots, len(self._blocks))
        self._order = order or order_on(device)
        self._slots: list[_Slot] = []
        self._handles: list[Any] = []
        self._active: int | None = None
        self.slot_bytes = max((sum(place.nbytes for place in places) for places in self._blocks), default=0)
        self._release()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return self._count * self.slot_bytes

    def is_running(self, module: nn.Module) -> bool:
        """Return whether ``module`` is the block that computes now."""
        return self._active is not None and self._modules[self._active] is module

    def __enter__(self) -> Self:
        """Make the buffers and watch the blocks."""
        self._slots = [
            _Slot(torch.empty(self.slot_bytes, dtype=torch.uint8, device=self._device)) for _ in range(self._count)
        ]
        for i, module in enumerate(self._modules):
            self._handles.append(module.register_forward_pre_hook(partial(self._before, i)))
            self._handles.append(module.register_forward_hook(partial(self._after, i), always_call=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the buffers back."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for slot in self._slots:
            # A copy may still be under way into a buffer that nobody came to read.
            if slot.filled is not None:
                self._order.wait(slot.filled)
        self._slots = []
        self._release()

    def _release(self) -> None:
        for places in self._blocks:
            for place in places:
                empty = torch.empty(place.source.shape, dtype=place.dtype, device="meta")
                place.module.register_parameter(place.name, nn.Parameter(empty, requires_grad=False))

    def _fill(self, i: int, slot: _Slot) -> None:
        starts, start = [], 0
        for place in self._blocks[i]:
            starts.append(start)
            start += place.nbytes

        def fill() -> None:
            for place, begin in zip(self._blocks[i], starts, strict=True):
                place.source.write_into(place.view(slot.buffer, begin).data)

        # Where a source fails, the buffer holds a part of a block.
        slot.holds = None
        slot.filled = self._order.copy(fill, slot.used)
        slot.holds = i

    def _slot_of(self, i: int) -> _Slot:
        for slot in self._slots:
            if slot.holds == i:
                return slot
        slot = self._slots[0]
        self._fill(i, slot)
        return slot

    def _before(self, i: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        slot = self._slot_of(i)
        if slot.filled is not None:
            self._order.wait(slot.filled)
        start = 0
        for place in self._blocks[i]:
            place.module.register_parameter(place.name, place.view(slot.buffer, start))
            start += place.nbytes
        self._active = i
        # The oldest buffer is the first of the list.
        self._slots.remove(slot)
        self._slots.append(slot)
        following = (i + 1) % len(self._blocks)
        if len(self._slots) > 1 and all(other.holds != following for other in self._slots):
            self._fill(following, self._slots[0])

    def _after(self, i: int, module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        self._active = None
        self._slots[-1].used = self._order.mark()


class LookedUp:
    """Reads rows of tables where the tables lie, in main memory, and brings only the rows to the device.

    Args:
        tables: modules that take numbers of rows.
        device: where the rows are wanted.
        dtype: in which they are wanted.
    """

    def __init__(self, tables: Iterable[nn.Module], device: torch.device, dtype: torch.dtype) -> None:
        self._tables, self._device, self._dtype = list(tables), device, dtype
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        """Watch the tables."""
        for table in self._tables:
            self._handles.append(table.register_forward_pre_hook(lambda module, inputs: (inputs[0].cpu(),)))
            move = partial(torch.Tensor.to, device=self._device, dtype=self._dtype)
            self._handles.append(table.register_forward_hook(lambda module, inputs, out, move=move: move(out)))
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the tables alone."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class Visiting:
    """Gives modules their weights only while each of them is called, in memory of its own that is dropped afterwards.

    For what is read once: the layers that ``prepare`` calls.

    Args:
        visits: module to the parameters that it needs, those of modules inside it included.
        device: where they are needed.
        is_held: says that a module has its weights already, as one inside a streamed block that runs.
    """

    def __init__(
        self,
        visits: Iterable[tuple[nn.Module, Sequence[Place]]],
        device: torch.device,
        is_held: Callable[[nn.Module], bool] = lambda module: False,
    ) -> None:
        self._visits, self._device, self._is_held = [(m, list(places)) for m, places in visits], device, is_held
        self._handles: list[Any] = []
        self._before: dict[int, list[nn.Parameter]] = {}

    def __enter__(self) -> Self:
        """Watch the modules."""
        for module, places in self._visits:
            self._handles.append(module.register_forward_pre_hook(partial(self._bring, places)))
            self._handles.append(module.register_forward_hook(partial(self._drop, places), always_call=True))
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the modules alone."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _bring(self, places: Sequence[Place], module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._is_held(module):
            return
        self._before[id(module)] = [getattr(place.module, place.name) for place in places]
        for place in places:
            place.module.register_parameter(place.name, place.brought(self._device))

    def _drop(self, places: Sequence[Place], module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        for place, parameter in zip(places, self._before.pop(id(module), ()), strict=False):
            place.module.register_parameter(place.name, parameter)
