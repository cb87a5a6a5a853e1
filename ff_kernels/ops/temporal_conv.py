"""Convolution along time as a 2-D convolution over the ``[T, H*W]`` picture of a clip."""

from functools import lru_cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@lru_cache(maxsize=16)
def temporal_conv_class(conv3d: type) -> type:
    """Return a subclass of a host's ``Conv3d`` that runs ``(k, 1, 1)`` kernels as 2-D convolutions.

    Only ``_conv_forward`` is replaced, so a host that casts or moves the weights in its own ``forward`` keeps
    doing so. The 2-D form is exact, needs no copy for channels-last activations and is several times faster
    than ``conv3d`` on a CPU (EXACTNESS.md, "Convolution over time as a picture").

    Args:
        conv3d: ``torch.nn.Conv3d`` or the host's layer derived from it.

    Returns:
        A class built as ``cls(in_channels, out_channels, (k, 1, 1), padding=(k // 2, 0, 0), ...)`` and called
        as ``layer(x)`` with ``x`` of shape ``[B, C, T, P]``; the result has the same shape.
    """

    class TemporalConv(conv3d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **kw: Any) -> Tensor:
            return F.conv2d(input, weight.squeeze(-1), bias, padding=(self.padding[0], 0))

    return TemporalConv
