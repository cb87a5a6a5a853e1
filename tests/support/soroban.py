"""A device made of Python, for what holds on cards that no test machine has.

``torch.device("soroban")`` is strict where Apple's, Intel's and Huawei's devices are, and a CPU or CUDA device is not:

- it has no float64;
- an operation that has kernels for CPU or CUDA alone does not run, and the operations of this project run by the kernel
  that they have for any device;
- a tensor that was left on the CPU does not meet its tensors, single numbers excepted;
- every byte that is alive on it is counted.

Torch's own operations run by their CPU kernels underneath, so that results differ from the CPU's by the rounding of
our kernels there alone. Because it is made of Python, ``torch.as_tensor(numbers, device="soroban")`` fails
inside torch.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "soroban"
ABSENT = {torch.float64, torch.complex128}
# Namespaces of torch itself, whose operations every device brings its own kernels for.
_OF_TORCH = {"aten", "prim", "prims"}
# They move numbers between devices, or take places from the CPU.
_MAY_MEET = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::_index_put", "aten::_foreach_copy_",
             "aten::_has_compatible_shallow_copy_type")  # fmt: skip
# They answer with a number, or with a tensor that is the host's.
_ANSWERS = ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::item")


class Ledger:
    """Bytes of the storages on the device: alive now, and the most that ever were at one time.

    Attributes:
        alive: bytes now.
        peak: most bytes since ``restart``.
        capacity: bytes that the device says it has.
    """

    def __init__(self, capacity: int = 8 << 30) -> None:
        self.alive, self.peak, self.capacity = 0, 0, capacity
        self._known: set[int] = set()

    def restart(self) -> None:
        """Take the peak from what is alive now."""
        self.peak = self.alive

    def enter(self, storage: torch.UntypedStorage) -> None:
        """Count a storage once, until it dies."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


LEDGER = Ledger()


class SorobanTensor(Tensor):
    """A tensor of the device around the CPU tensor that holds its numbers."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "SorobanTensor":
        """Put a CPU tensor on the device."""
        if held.dtype in ABSENT:
            raise TypeError(f"the device {NAME} has no {held.dtype}")
        # Views of a tensor from outside of the inference mode are no inference tensors, inside of it either.
        with torch.inference_mode(held.is_inference()):
            out = torch.Tensor._make_wrapper_subclass(
                cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
                device=f"{NAME}:0",
            )  # fmt: skip
        out.held, out.storage_of_held = held, held.untyped_storage()
        LEDGER.enter(out.storage_of_held)
        return out

    def tolist(self) -> Any:
        """Return the numbers; torch's own reads memory that a device made of Python has not."""
        return self.held.tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        """Make a tensor of numbers beside this one; torch's own does not call Python."""
        return torch.tensor(data, dtype=dtype or self.dtype).to(self.device)

    def __repr__(self) -> str:
        """Show the numbers, which torch would do in float64."""
        return f"{self.held} on {NAME}"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Let torch exchange parameters of this class whole: giving them new data would leave the numbers behind."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts: Mapping[str, Tensor], *_: object) -> "SorobanTensor":
        """Undo ``__tensor_flatten__``."""
        return SorobanTensor(parts["held"])

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    here = [x for x in _leaves((args, kwargs)) if isinstance(x, SorobanTensor)]
    name = func.name()
    if func.namespace not in _OF_TORCH:
        return _run_foreign(func, name, args, kwargs)
    if here and not name.startswith(_MAY_MEET):
        _refuse_strangers(name, args, kwargs)
    told = kwargs.get("device")
    goes_here = bool(here) if told is None else torch.device(told).type == NAME
    held_kwargs = kwargs if told is None else {**kwargs, "device": torch.device("cpu")}
    out = func(*_mapped(_held, args), **_mapped(_held, held_kwargs))
    if not goes_here or name.startswith(_ANSWERS):
        # Numbers that leave the device do not share its memory.
        return out.clone() if here and isinstance(out, Tensor) and _shares(out, here) else out
    if told is not None and isinstance(out, Tensor):
        strangers = [x for x in _leaves((args, kwargs)) if isinstance(x, Tensor) and not isinstance(x, SorobanTensor)]
        out = out.clone() if _shares(out, strangers) else out
    by_held = {id(x.held): x for x in here}
    # What is changed in place stays the tensor that it was.
    return _mapped(lambda x: by_held[id(x)] if id(x) in by_held else _placed(x), out)


def _run_foreign(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation of another library by its own kernel for this device, if it has one."""
    if not torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, "PrivateUse1") or not _has_kernel(name):
        raise NotImplementedError(f"'{name}' has no kernel for the device {NAME}")
    kernel = torch.library.get_kernel(func, "PrivateUse1")
    return kernel.call_boxed(torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1), *args, **kwargs)


def _has_kernel(name: str) -> bool:
    keys = ("PrivateUse1", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys)


def _refuse_strangers(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for x in _leaves((args, kwargs)):
        if isinstance(x, Tensor) and not isinstance(x, SorobanTensor) and x.ndim:
            raise RuntimeError(f"'{name}' got a tensor {list(x.shape)} on {x.device} beside those on {NAME}")


# Torch's own trees know more containers than operations take, and take longer than the operations here.
def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        tree = tuple(tree.values())
    if not isinstance(tree, (tuple, list)):
        yield tree
        return
    for part in tree:
        if isinstance(part, (tuple, list, Mapping)):
            yield from _leaves(part)
        else:
            yield part


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _mapped(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)([_mapped(function, part) for part in tree])
    return function(tree)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, SorobanTensor) else x


def _placed(x: Any) -> Any:
    return SorobanTensor(x) if isinstance(x, Tensor) and not isinstance(x, SorobanTensor) else x


def _shares(out: Tensor, others: Sequence[Tensor]) -> bool:
    place = out.untyped_storage().data_ptr()
    return any(_held(x).untyped_storage().data_ptr() == place for x in others)


class _Module:
    """What ``torch.soroban`` offers: the functions of a device that counts its memory."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def synchronize(self, device: Any = None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        # Where blocks run again torch asks the accelerator for it, whatever device they run on.
        return [torch.bfloat16, torch.float16]

    def get_device_name(self, device: Any = None) -> str:
        return "a soroban"

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return LEDGER.capacity - LEDGER.alive, LEDGER.capacity

    def memory_allocated(self, device: Any = None) -> int:
        return LEDGER.alive

    def memory_reserved(self, device: Any = None) -> int:
        return LEDGER.alive

    def max_memory_allocated(self, device: Any = None) -> int:
        return LEDGER.peak

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        LEDGER.restart()


def _install() -> Callable[..., Any]:
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    return library


_library = _install()
