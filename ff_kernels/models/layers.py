"""Where weighted layers come from: the host's ``operations`` namespace, with one device and dtype."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..ops import temporal_conv_class


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
