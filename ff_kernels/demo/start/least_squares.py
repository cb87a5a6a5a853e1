"""Start values of linear layers, fitted to what they should say of examples."""

import torch
from torch import Tensor


def fit_affine(inputs: Tensor, outputs: Tensor, *, ridge: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Fit ``outputs`` as an affine map of ``inputs`` by least squares, in float64.

    Args:
        inputs: ``[N, E]`` examples.
        outputs: ``[N, K]`` what the map should give for them.
        ridge: penalty on the square of the map, not of its offset, beside the summed squared error; without one the
            smallest map of those that fit best.
        weights: ``[N]`` how much the square root of each example's error weighs, all alike if None.

    Returns:
        ``[E + 1, K]`` float64: the map, and its offset in the last row.
    """
    table = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1).double()
    wanted = outputs.double()
    if weights is not None:
        table, wanted = table * weights.double()[:, None], wanted * weights.double()[:, None]
    if not ridge:
        return torch.linalg.pinv(table) @ wanted
    penalty = ridge * torch.eye(table.shape[1], dtype=table.dtype)
    penalty[-1, -1] = 0
    return torch.linalg.solve(table.T @ table + penalty, table.T @ wanted)
