"""Where weighted layers come from: the host's ``operations`` namespace, with one device and dtype."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import linear, temporal_conv_class


@dataclass(frozen=True)
class Layers:
    """Builds layers of one ``operations`` namespace (default ``torch.nn``) on one device in one dtype."""

    operations: Any = nn
    device: Any = None
    dtype: torch.dtype | None = None

    def _build(self, name: str, *args: Any, **kwargs: Any) -> nn.Module:
        return getattr(self.operations, name)(*args, **kwargs, device=self.device, dtype=self.dtype)

    def linear(self, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
        """Fully connected layer."""
        return self._build("Linear", inputs, outputs, bias=bias)

    def conv(self, inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> nn.Module:
        """2-D convolution that keeps the size."""
        return self._build("Conv2d", inputs, outputs, kernel, padding=kernel // 2, bias=bias)

    def halve(self, channels: int, kernel: int = 2) -> nn.Module:
        """2-D convolution with stride 2 and no padding."""
        return self._build("Conv2d", channels, channels, kernel, stride=2)

    def double(self, channels: int) -> nn.Module:
        """Transposed 2x2 convolution with stride 2."""
        return self._build("ConvTranspose2d", channels, channels, 2, stride=2)

    def conv3d(self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> nn.Module:
        """3-D convolution over ``[B, C, T, H, W]`` that keeps the size."""
        return self._build("Conv3d", inputs, outputs, tuple(kernel), padding=tuple(k // 2 for k in kernel))

    def temporal_conv(self, inputs: int, outputs: int, kernel: int = 3) -> nn.Module:
        """Convolution along time over ``[B, C, T, P]`` with Conv3d weights ``[O, I, kernel, 1, 1]``."""
        cls = temporal_conv_class(self.operations.Conv3d)
        return cls(inputs, outputs, (kernel, 1, 1), padding=(kernel // 2, 0, 0), device=self.device, dtype=self.dtype)

    def group_norm(self, groups: int, channels: int, eps: float = 1e-5) -> nn.Module:
        """Group normalisation with its own gain and bias."""
        return self._build("GroupNorm", groups, channels, eps=eps)

    def layer_norm(self, channels: int) -> nn.Module:
        """Layer normalisation over the last axis."""
        return self._build("LayerNorm", channels)

    def embedding(self, rows: int, channels: int) -> nn.Module:
        """Table of vectors."""
        return self._build("Embedding", rows, channels)

    def parameter(self, *shape: int) -> nn.Parameter:
        """A bare parameter, zero until loaded."""
        return nn.Parameter(torch.zeros(*shape, device=self.device, dtype=self.dtype))


def project(layer: nn.Module, x: Tensor, *, residual: Tensor | None = None, activate: bool = False) -> Tensor:
    """Run a linear layer on tokens ``[..., K]`` and what follows it: ``residual + silu(layer(x))``, each optional.

    A layer of torch's own runs as one operation with what follows. A host's layer may hold its weights anywhere
    until it is called, so it is called.
    """
    if type(layer) is nn.Linear:
        return linear(x, layer.weight, layer.bias, residual=residual, activate=activate)
    return _follow(layer(x), residual, activate)


def is_pointwise(layer: nn.Module) -> bool:
    """Return whether a layer of torch's own is a convolution that mixes channels only, in space or in time."""
    return type(layer) in (nn.Conv2d, temporal_conv_class(nn.Conv3d)) and set(layer.kernel_size) == {1}


def project_maps(layer: nn.Module, x: Tensor, *, residual: Tensor | None = None, activate: bool = False) -> Tensor:
    """Run a layer on maps ``[N, C, H, W]`` and what follows it: one operation for 1x1 convolutions, see ``project``.

    A layer made by folding may say by ``adds_residual`` that it takes the residual itself.
    """
    if getattr(layer, "adds_residual", False) and not activate:
        return layer(x, residual)
    if not is_pointwise(layer):
        return _follow(layer(x), residual, activate)
    lines, weight = x.permute(0, 2, 3, 1), layer.weight.flatten(1)  # [N, H, W, C]; no copy for channels-last maps
    after = None if residual is None else residual.permute(0, 2, 3, 1)
    return linear(lines, weight, layer.bias, residual=after, activate=activate).permute(0, 3, 1, 2)


def _follow(out: Tensor, residual: Tensor | None, activate: bool) -> Tensor:
    return add(F.silu(out) if activate else out, residual)


def add(out: Tensor, residual: Tensor | None) -> Tensor:
    """Return ``residual + out``, or ``out`` where there is no residual."""
    return out if residual is None else residual + out
