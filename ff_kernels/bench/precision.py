"""Which dtype every kind of operation of the reference runs in: plain, or as CUDA autocast casts them.

Autocast runs convolutions, linear layers and matrix products in 16 bit and normalisations and softmax in float32;
whatever lies between keeps the dtype it gets. Every cast is an operation of its own, with its own bytes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Precision:
    """Dtypes that operations cast to.

    Attributes:
        narrow: dtype of convolutions, linear layers and matrix products; None leaves it as it comes.
        wide: dtype of normalisations and softmax; None leaves it as it comes.
    """

    narrow: torch.dtype | None = None
    wide: torch.dtype | None = None

    def to_narrow(self, x: Tensor | None) -> Tensor | None:
        """Cast an input of a convolution or matrix product."""
        return x if x is None or self.narrow is None else x.to(self.narrow)

    def to_wide(self, x: Tensor | None) -> Tensor | None:
        """Cast an input of a normalisation or softmax."""
        return x if x is None or self.wide is None else x.to(self.wide)

    def linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Run a linear layer on ``[..., D]``."""
        return F.linear(self.to_narrow(x), self.to_narrow(layer.weight), self.to_narrow(layer.bias))

    def conv(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Run a convolution on ``[N, C, H, W]`` or, with five-dimensional weights, on ``[B, C, T, H, W]``."""
        weight, bias = self.to_narrow(layer.weight), self.to_narrow(layer.bias)
        run = F.conv2d if weight.ndim == 4 else F.conv3d
        return run(self.to_narrow(x), weight, bias, layer.stride, layer.padding)

    def conv_transpose(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Run a transposed convolution on ``[N, C, H, W]``."""
        weight, bias = self.to_narrow(layer.weight), self.to_narrow(layer.bias)
        return F.conv_transpose2d(self.to_narrow(x), weight, bias, layer.stride)

    def group_norm(self, x: Tensor, groups: int, layer: nn.Module | None = None, eps: float = 1e-5) -> Tensor:
        """Normalise ``[N, C, ...]``, with the gain and bias of ``layer`` where there is one."""
        weight, bias = (None, None) if layer is None else (self.to_wide(layer.weight), self.to_wide(layer.bias))
        return F.group_norm(self.to_wide(x), groups, weight, bias, eps)

    def softmax(self, scores: Tensor) -> Tensor:
        """Softmax over the last axis."""
        return self.to_wide(scores).softmax(dim=-1)


PLAIN = Precision()
AUTOCAST = Precision(torch.float16, torch.float32)
