"""Weights in 8 bit: a byte per weight and a float32 scale per output channel, widened where a block is about to run.

A block's weights are widened into the buffer that blocks share (``runtime/streaming.py``), so that whatever reads a
weight finds it in the dtype it computes in, and nothing else has to know.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

# Layers whose weights lose more than this, in dB of signal to rounding error, stay as they are.
LEAST_SQNR = 30.0
# Smaller tensors are not worth a scale.
LEAST_VALUES = 1024
_STEPS = 127
# The buffer in which a layer whose weight lies in 8 bit has the scale of every output channel, and its name in files.
SCALE = "weight_scale"


class Rounding(Protocol):
    """A network that says in which of its blocks weights may be rounded."""

    def step_blocks(self) -> list[nn.Module]:
        """Return the modules that a step calls."""

    def conditioner_modules(self) -> list[nn.Module]:
        """Return the modules that are called once per run."""

    def outer_blocks(self) -> list[nn.Module]:
        """Return the blocks in which rounding shows most."""

    def named_modules(self) -> Iterable[tuple[str, nn.Module]]:
        """Return all modules with their names."""


def layers_to_round(network: Rounding) -> dict[str, nn.Module]:
    """Return the layers whose weights may lie in 8 bit, by name: large ones that a step reads, none of the outer level.

    What only ``prepare`` reads stays as it is: it costs memory once per run, and 20 dB if rounded.
    """
    left = {id(inner) for m in (*network.outer_blocks(), *network.conditioner_modules()) for inner in m.modules()}
    inside = {id(inner) for block in network.step_blocks() for inner in block.modules()} - left
    weights = {
        name: (module, module._parameters.get("weight"))
        for name, module in network.named_modules()
        if id(module) in inside
    }
    return {
        name: module
        for name, (module, weight) in weights.items()
        if weight is not None and can_round(module, "weight", weight.shape)
    }


@dataclass(frozen=True)
class Rounded:
    """A weight in 8 bit, a source as ``streaming.Source``.

    Attributes:
        data: whole numbers -127 .. 127.
        scale: float32, one number per output channel, shaped to multiply ``data``.
        dtype: in which the weight is wanted.
    """

    data: Tensor
    scale: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.data.shape

    @property
    def nbytes(self) -> int:
        """Bytes as it is kept."""
        return self.data.nbytes + self.scale.nbytes

    def write_into(self, out: Tensor) -> None:
        """Write ``data * scale``, multiplied in float32 and rounded once."""
        data = self.data.to(out.device, non_blocking=True)
        torch.mul(data, self.scale.to(out.device, non_blocking=True), out=out)

    def moved(self, device: torch.device, hold: Callable[[Tensor], Tensor] | None = None) -> "Rounded":
        """Return it on a device, or in memory that ``hold`` gives."""
        data, scale = self.data.to(device), self.scale.to(device)
        return Rounded(data if hold is None else hold(data), scale, self.dtype)

    def wide(self) -> Tensor:
        """Return the weight."""
        out = torch.empty_like(self.data, dtype=self.dtype)
        self.write_into(out)
        return out


def can_round(module: nn.Module, name: str, shape: torch.Size) -> bool:
    """Return whether a parameter is the weight of a layer that ``rounded`` takes."""
    return (
        name == "weight" and len(shape) > 1 and shape.numel() >= LEAST_VALUES and not isinstance(module, nn.Embedding)
    )


def _channel_axis(module: nn.Module) -> int:
    return 1 if isinstance(module, nn.ConvTranspose2d) else 0


def rounded(module: nn.Module, weight: Tensor, dtype: torch.dtype) -> Rounded:
    """Round the weight of a layer, symmetrically, by the largest value of each output channel.

    Args:
        module: the layer: that of a transposed convolution has its output channels on axis 1.
        weight: on the CPU, or without data on the meta device.
        dtype: in which the weight will be wanted.
    """
    others = [i for i in range(weight.ndim) if i != _channel_axis(module)]
    values = weight.float()
    scale = values.abs().amax(dim=others, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _STEPS
    return Rounded(torch.round(values / scale).to(torch.int8), scale, dtype)


def sqnr(weight: Tensor, kept: Rounded) -> float:
    """Return the signal to rounding error of a weight in dB."""
    values = weight.float()
    error = (values - kept.data * kept.scale).square().sum().item()
    return math.inf if error == 0 else 10 * math.log10(max(values.square().sum().item(), 1e-300) / error)


@dataclass
class Report:
    """What rounding did to the layers of a network.

    Attributes:
        layers: name to signal to rounding error in dB.
        left: names of the layers that lost too much and stay as they are.
    """

    layers: dict[str, float] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def phrase(self) -> str:
        """Return it as half a sentence."""
        if not self.layers:
            return "no layer in 8 bit"
        worst = min(self.layers, key=self.layers.get)
        said = f"{len(self.layers)} layers in 8 bit, the worst '{worst}' at {self.layers[worst]:.1f} dB"
        return said + (f"; left in 16 bit: {', '.join(self.left)}" if self.left else "")


@torch.no_grad()
def round_weights(network: Rounding, only: Collection[str] | None = None) -> Report:
    """Round what may be rounded of a network to 8 bit, in place: ``int8`` weights with their scales beside them.

    Such a network runs through ``runtime/placing.py`` only, which widens weights.

    Args:
        network: with its weights on the CPU; on the meta device every layer that may be rounded is.
        only: names of the weights to round; default: all that may be.
    """
    report = Report()
    for name, layer in layers_to_round(network).items():
        if only is not None and f"{name}.weight" not in only:
            continue
        kept, loss = judged(layer, layer.weight.detach())
        if kept is None:
            report.left.append(name)
            continue
        report.layers[name] = loss
        set_rounded(layer, kept.data, kept.scale)
    return report


def judged(layer: nn.Module, weight: Tensor) -> tuple[Rounded | None, float]:
    """Return the weight of a layer in 8 bit and what it lost in dB; None in place of one that lost too much."""
    kept = rounded(layer, weight, weight.dtype)
    loss = math.inf if weight.is_meta else sqnr(weight, kept)
    return (None if loss < LEAST_SQNR else kept), loss


def set_rounded(layer: nn.Module, data: Tensor, scale: Tensor) -> None:
    """Give a layer a weight in 8 bit."""
    layer.weight = nn.Parameter(data, requires_grad=False)
    layer.register_buffer(SCALE, scale, persistent=False)
