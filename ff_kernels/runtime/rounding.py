"""Weights in 8 bit: a byte per weight and a float32 scale per output channel, widened where a block is about to run.

A block's weights are widened into the buffer that blocks share (``streaming``), so that whatever reads a weight finds
it in the dtype it computes in, and nothing else has to know.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# Layers whose weights lose more than this, in dB of signal to rounding error, stay as they are.
LEAST_SQNR = 30.0
# Smaller tensors are not worth a scale.
LEAST_VALUES = 1024
_STEPS = 127


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

    def write_into(self, out: Tensor) -> None:
        """Write ``data * scale``, multiplied in float32 and rounded once."""
        data = self.data.to(out.device, non_blocking=True)
        torch.mul(data, self.scale.to(out.device, non_blocking=True), out=out)

    def moved(self, device: torch.device, hold: Callable[[Tensor], Tensor] | None = None) -> "Rounded":
        """Return it on a device, or in memory that ``hold`` gives."""
        data, scale = self.data.to(device), self.scale.to(device)
        return Rounded(data if hold is None else hold(data), scale, self.dtype)


def can_round(module: nn.Module, name: str, shape: torch.Size) -> bool:
    """Return whether a parameter is the weight of a layer that ``rounded`` takes."""
    return (
        name == "weight" and len(shape) > 1 and shape.numel() >= LEAST_VALUES and not isinstance(module, nn.Embedding)
    )


def packed_bytes(module: nn.Module, shape: torch.Size) -> int:
    """Return the bytes of a weight in 8 bit."""
    return shape.numel() + 4 * shape[_channel_axis(module)]


def _channel_axis(module: nn.Module) -> int:
    return 1 if isinstance(module, nn.ConvTranspose2d) else 0


def rounded(module: nn.Module, weight: Tensor, dtype: torch.dtype) -> Rounded:
    """Round the weight of a layer, symmetrically, by the largest value of each output channel.

    Args:
        module: the layer: that of a transposed convolution has its output channels on axis 1.
        weight: on the CPU.
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
