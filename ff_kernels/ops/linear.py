"""Linear layer with what follows it."""

from torch import Tensor

from .eager import linear as formulas
from .registry import Cost, Operation, bytes_of


def _fake(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _cost(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activate: bool, *, out: Tensor
) -> Cost:
    return Cost(1, 2 * out.numel() * x.shape[-1], bytes_of(x, weight, bias, residual, out))


_linear = Operation(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, bool activate) -> Tensor",
    _fake,
    _cost,
    formulas.linear,
)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None, activate: bool = False
) -> Tensor:
    """Linear layer and what follows it in one pass: ``residual + silu(x W^T + b)``, each part optional.

    Args:
        x: ``[..., K]``.
        weight: ``[O, K]``.
        bias: ``[O]``.
        residual: ``[..., O]`` added to the result.
        activate: apply SiLU before the residual is added.

    Returns:
        ``[..., O]``, contiguous.

    Source: the 1x1 convolutions, projections and feed-forwards of both releases (EXACTNESS.md,
    "Sums in the same pass").
    """
    return _linear(x, weight, bias, residual, activate)
