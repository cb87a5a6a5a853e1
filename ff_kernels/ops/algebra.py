"""Algebra with weights at load time: exact, and away from devices that have no float64."""

from torch import Tensor


def exact(weight: Tensor) -> Tensor:
    """Return a weight as float64 on the CPU; one without data stays without."""
    return weight.detach().to("meta" if weight.is_meta else "cpu").double()


def rounded(values: Tensor, like: Tensor) -> Tensor:
    """Return exact values in the dtype and on the device of the weight ``like`` that they replace."""
    # In two steps: a device without float64 must not see the values before they are rounded.
    return values.to(like.dtype).to(like.device)
