"""Count what a function costs without running it: launches, FLOPs, bytes, parameters read, peak of live memory.

The function runs on meta tensors, so that full-size networks are counted in seconds on any machine. Bytes are the
roofline's: every operation reads each of its inputs once and writes each of its outputs once.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ..ops import registry

# Operations of ours are counted by the cost that each states beside its definition.
OWN_NAMESPACE = "fusionframes"
# Return storage or numbers without touching data; views are recognised by their schema.
_FREE = {
    "_local_scalar_dense", "_unsafe_view", "_reshape_alias", "alias", "detach", "empty", "empty_like", "empty_strided",
    "is_same_size", "lift_fresh", "new_empty", "new_empty_strided", "resize_", "set_", "sym_size", "sym_stride",
}  # fmt: skip
# Write an argument without reading it first.
_OVERWRITES = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_"}
# Read as many elements of their table as they return.
_LOOKUPS = {"embedding", "gather", "index", "index_select"}


@dataclass(frozen=True)
class Cost:
    """What one operation costs.

    Attributes:
        name: name of the operation.
        launches: kernels; one for an operation of torch.
        flops: floating point operations of convolutions and matrix products, two per multiply-add.
        bytes: read and written.
    """

    name: str
    launches: int
    flops: int
    bytes: int


@dataclass
class Recording:
    """The costs of one run.

    Attributes:
        costs: per operation, in order.
        parameter_bytes: bytes of distinct parameters and buffers read.
        peak_bytes: most bytes alive at one time in tensors made during the run.
        result: what the function returned.
    """

    costs: list[Cost] = field(default_factory=list)
    parameter_bytes: int = 0
    peak_bytes: int = 0
    result: Any = None

    @property
    def launches(self) -> int:
        """Kernels launched."""
        return sum(cost.launches for cost in self.costs)

    @property
    def flops(self) -> int:
        """Floating point operations."""
        return sum(cost.flops for cost in self.costs)

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return sum(cost.bytes for cost in self.costs)

    def by_operation(self) -> list[Cost]:
        """Sum the costs of each operation, most bytes first."""
        sums: dict[str, tuple[int, int, int]] = {}
        for cost in self.costs:
            launches, flops, size = sums.get(cost.name, (0, 0, 0))
            sums[cost.name] = (launches + cost.launches, flops + cost.flops, size + cost.bytes)
        return sorted((Cost(name, *values) for name, values in sums.items()), key=lambda cost: -cost.bytes)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Return the time that a device of these peaks cannot go below, operation by operation."""
        return sum(max(cost.flops / flops_per_second, cost.bytes / bytes_per_second) for cost in self.costs)


def record(
    function: Callable[[], Any], parameters: torch.nn.Module | Iterable[Tensor] = (), *, fuses_attention: bool = True
) -> Recording:
    """Run a function on meta tensors and count what it costs.

    Args:
        function: takes nothing; its tensors live on the meta device.
        parameters: a module, or tensors, whose bytes count as parameters and never as live memory.
        fuses_attention: count attention as one kernel; a caller that takes gradients has to do so by itself.
    """
    if isinstance(parameters, torch.nn.Module):
        parameters = [*parameters.parameters(), *parameters.buffers()]
    recorder = _Recorder(parameters)
    with torch.no_grad(), _FusedAttention(recorder) if fuses_attention else nullcontext(), recorder:
        recorder.recording.result = function()
    recorder.recording.parameter_bytes = recorder.parameter_bytes()
    return recorder.recording


class _Recorder(TorchDispatchMode):
    """Sees every operation that reaches a device."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.recording, self.is_paused = Recording(), False
        self._parameters = {_storage_key(tensor): tensor for tensor in parameters}
        self._ranges: dict[int, dict[tuple, int]] = {}
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if self.is_paused:
            return func(*args, **kwargs)
        self.is_paused = True
        try:
            out = func(*args, **kwargs)
            out = _as_devices_lay_it_out(func, args, out)
        finally:
            self.is_paused = False
        self._count(func, args, kwargs, out)
        return out

    def fused_attention(self, function: Callable[..., Tensor], args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Run ``scaled_dot_product_attention`` and count it as one kernel, whichever way meta takes."""
        if self.is_paused:
            return function(*args, **kwargs)
        self.is_paused = True
        try:
            out = function(*args, **kwargs)
            # Fused kernels write tokens as they read queries; what meta falls back to writes heads first.
            out = torch.empty_like(args[0] if args else kwargs["query"])
        finally:
            self.is_paused = False
        query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))[:3]
        inputs = _tensors((args, kwargs))
        work = sdpa_flop_count(query.shape, key.shape, value.shape)
        self._add(Cost("fused_attention", 1, work, _total(inputs) + size_in_bytes(out)), inputs, [out])
        return out

    def parameter_bytes(self) -> int:
        """Sum the distinct ranges of parameters that were read, at most the whole of each."""
        return sum(
            min(sum(self._ranges[key].values()), tensor.untyped_storage().nbytes())
            for key, tensor in self._parameters.items()
            if key in self._ranges
        )

    def _count(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        outputs = _tensors(out)
        if func.is_view or func._schema.name.split("::")[1] in _FREE:
            self._watch(outputs)
            return
        self._add(cost_of_operation(func, args, kwargs, out), _tensors((args, kwargs)), outputs)

    def _add(self, cost: Cost, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self.recording.costs.append(cost)
        for tensor in inputs:
            key = _storage_key(tensor)
            if key in self._parameters:
                self._ranges.setdefault(key, {})[_range(tensor)] = size_in_bytes(tensor)
        self._watch(outputs)

    def _watch(self, outputs: list[Tensor]) -> None:
        for tensor in outputs:
            storage, key = tensor.untyped_storage(), _storage_key(tensor)
            if key not in self._alive and key not in self._parameters:
                self._alive[key] = storage.nbytes()
                weakref.finalize(storage, self._alive.pop, key, None)
        self.recording.peak_bytes = max(self.recording.peak_bytes, sum(self._alive.values()))


class _FusedAttention(TorchFunctionMode):
    """Catches ``scaled_dot_product_attention`` before a backend is chosen."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.recorder.fused_attention(func, args, kwargs)
        return func(*args, **kwargs)


def _as_devices_lay_it_out(func: Any, args: tuple, out: Any) -> Any:
    """Give a convolution's result the layout of its input: cuDNN and oneDNN keep channels last, meta does not."""
    if func is not torch.ops.aten.convolution.default or args[0].ndim != 4:
        return out
    keeps = args[0].is_contiguous(memory_format=torch.channels_last) and not args[0].is_contiguous()
    return torch.empty_like(out, memory_format=torch.channels_last) if keeps else out


def cost_of_operation(func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> Cost:
    """Return the cost of one call of an operation (an ``OpOverload``)."""
    name = func._schema.name
    if func.namespace.startswith(OWN_NAMESPACE):
        stated = registry.cost_of(func, args, kwargs, out)
        if stated is not None:
            return Cost(name, stated.launches, stated.flops, stated.bytes)
    count = flop_registry.get(func._overloadpacket)
    flops = 0 if count is None else int(count(*args, **kwargs, out_val=out))
    return Cost(name, 1, flops, _moved_bytes(func, args, kwargs, out))


def size_in_bytes(tensor: Tensor) -> int:
    """Return the bytes of the distinct elements of a tensor; an expanded axis counts once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    elements = math.prod(sizes) if tensor.numel() else 0
    return min(elements * tensor.element_size(), tensor.untyped_storage().nbytes())


def _moved_bytes(func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> int:
    name, fresh = func._schema.name.split("::")[1], _tensors(out)
    reads, writes = [], []
    for argument, value in _named(func, args, kwargs):
        tensors, is_written = _tensors(value), argument.alias_info is not None and argument.alias_info.is_write
        if is_written:
            writes += tensors
        if not is_written or not (argument.kwarg_only or name in _OVERWRITES):
            reads += tensors
    written = {_storage_key(tensor) for tensor in writes}
    writes += [tensor for tensor in fresh if _storage_key(tensor) not in written]
    if name in _LOOKUPS:
        return _total(reads[1:]) + 2 * _total(writes)
    # The statistics of a group norm need a pass over its input before the one that writes.
    twice = size_in_bytes(reads[0]) if name == "native_group_norm" else 0
    return _total(reads) + _total(writes) + twice


def _named(func: Any, args: tuple, kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    for i, argument in enumerate(func._schema.arguments):
        if i < len(args):
            yield argument, args[i]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _total(tensors: Iterable[Tensor]) -> int:
    return sum({(_storage_key(t), _range(t)): size_in_bytes(t) for t in tensors}.values())


def _range(tensor: Tensor) -> tuple:
    return tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def _storage_key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _is_composite(func: Any) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key) and not func.namespace.startswith(
        OWN_NAMESPACE
    )
