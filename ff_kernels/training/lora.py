"""LoRA on a U-Net: small factors beside frozen weights, in weight space, so that every kind of layer takes one."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError
from ..models.temporal_blocks import is_temporal
from ..models.unet import UNet

LAYERS = ("temporal", "attention", "all")
_PROJECTIONS = ("to_query", "to_key", "to_value", "output_layer")
_PART = ".parametrizations.weight.0."


class LowRank(nn.Module):
    """``weight + scale * up @ down``: starts as the weight itself, as ``up`` starts at zero.

    Attributes:
        up: ``[O, r]``, O the first axis of the weight.
        down: ``[r, the rest of the weight]``.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rank = min(rank, len(weight), weight[0].numel())
        self.scale = scale
        self.up = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))
        self.down = nn.Parameter(torch.empty(rank, weight[0].numel(), device=weight.device))
        if not weight.is_meta:
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with the product added, in the weight's shape and dtype."""
        return weight + (self.scale * (self.up @ self.down)).reshape(weight.shape).to(weight.dtype)


def lora_layers(unet: UNet, layers: str) -> dict[str, nn.Module]:
    """Return the layers that a LoRA changes, by name; what only ``prepare`` reads is never among them.

    Args:
        unet: keyframe or interpolation U-Net.
        layers: "temporal" for all that mixes frames, "attention" for the projections of every attention, or "all".

    Raises:
        InputError: for another word, or where the network has no such layers.
    """
    if layers not in LAYERS:
        raise InputError(f"expected layers as one of {', '.join(LAYERS)}, got '{layers}': choose one of them")
    conditioner = {id(inner) for module in unet.conditioner_modules() for inner in module.modules()}
    takes = {
        "temporal": is_temporal,
        "attention": lambda name: name.rpartition(".")[2] in _PROJECTIONS,
        "all": lambda name: True,
    }[layers]
    found = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
        and module.weight.ndim > 1
        and id(module) not in conditioner
        and takes(name)
    }
    if not found:
        raise InputError(f"expected {layers} layers in the {unet.config.stage} U-Net, found none: choose others")
    return found


def attach_lora(unet: UNet, layers: str, rank: int, scale: float = 1.0) -> dict[str, nn.Module]:
    """Freeze a U-Net and give its layers factors that train; return the layers by name.

    Raises:
        InputError: for a rank below 1, or layers that the network has not.
    """
    if rank < 1:
        raise InputError(f"expected a rank of 1 or more, got {rank}: 16 is a usual one")
    unet.requires_grad_(False)
    found = lora_layers(unet, layers)
    for module in found.values():
        parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank, scale))
    return found


def detach_factors(trained: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return ``up`` and ``down`` of every layer from trained parameters whose names start with ``prefix``."""
    names = [key.removeprefix(prefix).removesuffix(f"{_PART}up") for key in trained if key.endswith(f"{_PART}up")]
    return {
        name: (trained[f"{prefix}{name}{_PART}up"], trained[f"{prefix}{name}{_PART}down"]) for name in sorted(names)
    }
