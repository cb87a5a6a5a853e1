"""Folded networks in core's care: saved as released, moved whole, and refusing what goes by the names of weights."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ...ff_kernels.checkpoints.folding import Target, fold, use_winograd
from ...ff_kernels.checkpoints.loading import fill
from ...ff_kernels.errors import InputError
from .._compat import archive_dtypes, is_dynamic, make_patcher

AS_RELEASED, FOLDED = "as released", "folded"
LAYERS = [AS_RELEASED, FOLDED]


def fill_folded(network: nn.Module, tensors: dict[str, Tensor], target: Target) -> None:
    """Fill a network that was built without memory and fold it, as the command line does.

    Args:
        network: U-Net, what was taken out of one, or MoVQ, of ``torch.nn`` layers on the meta device.
        tensors: of the network, as stored in the file: folding rounds once only.
        target: where and in which dtype it will run.
    """
    network.load_state_dict(tensors, assign=True)
    fold(network, target)
    network.eval().to(dtype=target.dtype)
    archive_dtypes(network)


def fill_from_folded(network: nn.Module, tensors: dict[str, Tensor], target: Target, *, is_exact: bool = True) -> None:
    """Fill a network that was built without memory with the layers of a folded file, as the command line does.

    Args:
        network: as for ``fill_folded``.
        tensors: of the network, widened.
        target: where and in which dtype it will run.
        is_exact: whether the file holds no weights in 8 bit; the command line runs those in their plain form.
    """
    fold(network, replace(target, is_portable=True))
    # No slices of the file: core's pager reads those for its own layers only, and these are moved whole.
    fill(network, tensors)
    if is_exact:
        use_winograd(network, target)
    network.to(dtype=target.dtype)
    archive_dtypes(network)


def list_released(
    tensors: dict[str, Tensor], *args: Any, destination: dict[str, Any] | None = None, prefix: str = "", **_: Any
) -> dict[str, Any]:
    """Put a file's tensors where ``Module.state_dict`` with the same arguments would put a module's."""
    if args:
        destination, prefix = args[0], args[1] if len(args) > 1 else prefix
    out = {} if destination is None else destination
    out.update({prefix + name: tensor for name, tensor in tensors.items()})
    return out


def make_whole_patcher(module: nn.Module, load_device: Any, offload_device: Any) -> Any:
    """Wrap a module of ``torch.nn`` layers for core's memory management, see ``WholePatcher``."""
    patcher = make_patcher(module, load_device, offload_device)
    # Core decides by the device which class it makes; clones are of the class of what they are cloned from.
    patcher.__class__ = _whole(type(patcher))
    patcher.size = size_of(module)
    return patcher


def size_of(module: nn.Module) -> int:
    """Return the bytes of a module's weights, of quantised ones those that are stored."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


@cache
def _whole(base: type) -> type:
    return type(f"Whole{base.__name__}", (WholePatcher, base), {})


def refuse_folded(model: Any) -> None:
    """Refuse what changes or reads weights by their names, of core's model with folded layers.

    Raises:
        InputError: always.
    """
    found, advice = "folded ones", f'choose "{AS_RELEASED}" in FusionFrames Load Model'
    if getattr(model, "is_filed_folded", False):
        found, advice = "those of a folded file, which cannot be turned back", "load the file that it was made from"
    raise InputError(
        f"model expected layers as released for a LoRA, training, merging or another compute dtype, got {found}: "
        f"{advice}"
    )


def refuse_named(patcher: Any, *_: Any, **__: Any) -> None:
    """Be a patcher's method that refuses; see ``refuse_folded``."""
    refuse_folded(patcher.model)


def refuse_patched(patcher: Any) -> None:
    """Refuse a folded MODEL that carries patches of weights, however they came there.

    Raises:
        InputError: if it does.
    """
    if patcher.model.is_folded and (patcher.patches or any(patcher.hook_patches.values())):
        refuse_folded(patcher.model)


class WholePatcher:
    """What a patcher of core's does otherwise with layers that do not fetch their weights when they are called.

    Such a layer must be where it runs: the module is loaded whole or not at all.
    """

    add_patches = add_hook_patches = add_weight_wrapper = get_key_patches = refuse_named

    def set_injections(self, key: str, injections: list[Any]) -> None:
        """Take injections of nodes, but no LoRA that would run beside layers that are gone."""
        if "lora" in key:
            refuse_folded(self.model)
        super().set_injections(key, injections)

    def set_model_compute_dtype(self, dtype: torch.dtype | None) -> None:
        """Take core's choice and the dtype that the layers were folded for, which are the same."""
        if dtype not in (None, self.model.get_dtype()):
            refuse_folded(self.model)

    def load(self, device_to: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Load all layers; a paging patcher does so by itself, as they are not core's."""
        if is_dynamic(self):
            return super().load(device_to, *args, **kwargs)
        return super().load(device_to, full_load=True)

    def partially_unload(self, *args: Any, **kwargs: Any) -> int:
        """Free nothing, upon which core unloads all."""
        return super().partially_unload(*args, **kwargs) if is_dynamic(self) else 0
