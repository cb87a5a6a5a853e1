"""Linear layer with what follows it."""

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activate: bool) -> Tensor:
    """Formula of ``ops.linear``."""
    out = F.linear(x, weight, bias)
    out = F.silu(out) if activate else out
    # A sum takes the layout of what it is given, but the result is to be contiguous on every backend.
    return (out if residual is None else out + residual).contiguous()
