"""Run code that asks small tensors for their values on the meta device, which has none."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

# Masks, lengths and timesteps are far smaller, weights and activations far larger.
LIMIT = 1 << 14


class KnownValues(TorchDispatchMode):
    """Small meta tensors made inside the block keep their values in a twin on the CPU.

    ``prepare`` of a U-Net drops the tokens that a mask hides, so it has to read the mask even where the weights are
    on the meta device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._twins = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        twin = self._run_twin(func, args, kwargs)
        if twin is not None:
            leaves = tree_leaves(twin)
            if not any(isinstance(leaf, Tensor) for leaf in leaves) or _names_cpu(kwargs):
                return twin
            if torch.Tag.dynamic_output_shape in func.tags:
                return self._remember(tree_map(_to_meta, twin), twin)
        out = func(*args, **kwargs)
        return out if twin is None else self._remember(out, twin)

    def _run_twin(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = all(not t.is_meta or t in self._twins for t in tensors) and any(t.is_meta for t in tensors)
        made = torch.device(kwargs.get("device") or "cpu").type == "meta"
        is_small = sum(t.numel() for t in tensors) <= LIMIT
        if not (known or (made and not any(t.is_meta for t in tensors))) or not is_small:
            return None
        if torch.Tag.nondeterministic_seeded in func.tags or _asks_for_much(func, args):
            return None
        args, kwargs = tree_map(self._twin_of, (args, kwargs))
        return func(*args, **({**kwargs, "device": torch.device("cpu")} if "device" in kwargs else kwargs))

    def _twin_of(self, value: Any) -> Any:
        return self._twins.get(value, value) if isinstance(value, Tensor) else value

    def _remember(self, out: Any, twin: Any) -> Any:
        for made, value in zip(tree_leaves(out), tree_leaves(twin), strict=True):
            if isinstance(made, Tensor) and made.is_meta and value.numel() <= LIMIT:
                self._twins[made] = value
        return out


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _names_cpu(kwargs: dict[str, Any]) -> bool:
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"


def _asks_for_much(func: Any, args: tuple) -> bool:
    """Whether a call without tensors would fill a large one."""
    sizes = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    return all(isinstance(size, int) for size in sizes) and torch.Size(sizes).numel() > LIMIT
