"""Start values that hand the noise from a keyframe U-Net's input to its output, so that training is about the clip.

The network predicts the noise. Where noise is nearly all there is, an error of a hundredth in it is an error of 0.3 in
the estimated clip, and what a caption says of the clip drowns until the network copies its input that exactly, which
it hardly learns to (NOTES.md).
"""

import torch
from torch import Tensor, nn

from ...models.keyframe_unet import KeyframeUNet
from .least_squares import fit_affine

# Every latent channel a leaves as four, a + K, K - a, a - K and -a - K, behind a norm that divides by about K and
# multiplies by as much again, and a SiLU. As silu(y) - silu(-y) = y, their signed sum is the channel itself.
OFFSET = 4.0
_SIGNS = ((1, 1), (-1, 1), (1, -1), (-1, -1))
# Below this offset the norm would follow the picture: the path's gain ends at 3.7, from about step 10 of 50 on.
_LEAST_OFFSET = 1.0
# Mean square of the demo's latents.
LATENT_POWER = 0.21
# A signal's share below this is fitted no more exactly than this.
_SHARE_FLOOR = 0.02
_RIDGE = 1e-3

_ALL = (slice(None),)


class _Path:
    """The weights that the noise passes: written once, then without a gradient."""

    def __init__(self, writes: bool) -> None:
        self.writes = writes
        self.held: list[tuple[nn.Parameter, tuple]] = []

    def clear(self, layer: nn.Module, rows: list[int]) -> None:
        """Hold what makes channels ``rows`` of ``layer`` at zero, until ``put`` says otherwise."""
        # A transposed convolution keeps its outputs in the second axis.
        places = (slice(None), rows) if isinstance(layer, nn.ConvTranspose2d) else (rows,)
        self.hold(layer.weight, places)
        if layer.bias is not None:
            self.hold(layer.bias, (rows,))

    def hold(self, parameter: nn.Parameter, where: tuple = _ALL) -> None:
        """Hold ``parameter[where]`` at zero, until ``put`` says otherwise."""
        self.put(parameter, where, 0.0)
        self.held.append((parameter, where))

    def leave(self, block: nn.Module, rows: list[int]) -> None:
        """Hold a convolution along time inside of ``block`` where it copies channels ``rows``, if there is one."""
        if block.mixes_time:
            self.held += [(block.temporal_projection.weight, (rows,)), (block.temporal_projection.bias, (rows,))]

    def clear_time(self, block: nn.Module, rows: list[int]) -> None:
        """Hold what a block of convolutions along time adds to channels ``rows`` at zero, if there is a block."""
        if not isinstance(block, nn.Identity):
            self.clear(block.temporal_resnet_blocks[-1][-1], rows)

    def put(self, parameter: nn.Parameter, where: tuple, value: float) -> None:
        """Give weights their start value, if values are to be written."""
        if self.writes:
            parameter[where] = value


@torch.no_grad()
def carry_noise(unet: KeyframeUNet) -> None:
    """Set start values with which ``unet`` returns its input but for what its last residual branch adds.

    The input rides in the first channels of the full size, and as four neighbours each in those of the halved skip
    connection; every residual branch on the way leaves these channels alone.

    Args:
        unet: two levels, two units or more at full size, ``init_channels`` four times ``groups``, ``groups`` twice
            the latent channels; changed in place.

    Raises:
        ValueError: if the sizes do not fit.
    """
    _walk(unet, writes=True)


def hold_noise(unet: KeyframeUNet) -> None:
    """Keep gradients from the weights that ``carry_noise`` set, in this object; weight decay must be off as well."""
    for parameter, where in _walk(unet, writes=False):
        free = torch.ones_like(parameter, requires_grad=False)
        free[where] = 0
        parameter.register_hook(lambda gradient, free=free: gradient * free.to(gradient))


def _walk(unet: KeyframeUNet, writes: bool) -> list[tuple[nn.Parameter, tuple]]:
    config = unet.config
    sizes = (len(config.dim_mult), config.init_channels // config.groups, config.groups // config.latent_channels)
    if sizes != (2, 4, 2) or config.num_blocks[0] < 2:
        raise ValueError(
            "expected two levels, four channels per group, two groups per latent channel and two units at full size "
            f"in carry_noise, got {(*sizes, config.num_blocks[0])}"
        )
    path, count = _Path(writes), config.latent_channels
    noise, quarters = list(range(count)), list(range(4 * count))

    path.clear(unet.in_layer, noise)
    for i in noise:
        path.put(unet.in_layer.weight, (i, i, 1, 1), 1.0)
    units = unet.down_samples[0].resnet_attn_blocks
    for first, _, second, first_time, second_time in units:
        _pass(path, first, noise, noise)
        path.clear_time(first_time, noise)
        if second is not units[-1][2]:
            _pass(path, second, noise, noise)
            path.clear_time(second_time, noise)
    _halve(path, units[-1][2], noise, quarters)
    path.clear_time(units[-1][4], quarters)
    _go_up(path, unet.up_samples[-1].resnet_attn_blocks, config.model_channels * config.dim_mult[0], noise)
    _leave(path, unet, noise, quarters)
    return path.held


def _pass(path: _Path, block: nn.Module, rows: list[int], sources: list[int]) -> None:
    """Let ``rows`` of a spatial block be ``sources`` of its input."""
    path.clear(block.resnet_blocks[3].projection, rows)
    path.leave(block.resnet_blocks[3], rows)
    if not isinstance(block.shortcut_projection, nn.Identity):
        path.clear(block.shortcut_projection, rows)
        for row, source in zip(rows, sources, strict=True):
            path.put(block.shortcut_projection.weight, (row, source, 0, 0), 1.0)


def _halve(path: _Path, block: nn.Module, noise: list[int], quarters: list[int]) -> None:
    path.clear(block.resnet_blocks[3].projection, quarters)
    path.leave(block.resnet_blocks[3], quarters)
    path.clear(block.shortcut_down_sample, quarters)
    for quarter in quarters:
        corner, channel = divmod(quarter, len(noise))
        path.put(block.shortcut_down_sample.weight, (quarter, channel, *divmod(corner, 2)), 1.0)


def _go_up(path: _Path, units: nn.ModuleList, skip: int, noise: list[int]) -> None:
    """Put the four neighbours back in place; ``skip`` is the channel at which the skip connection starts."""
    count = len(noise)
    first, _, second, first_time, second_time = units[0]
    doubled = [skip + i for i in noise]
    path.clear_time(first_time, [skip + i for i in range(4 * count)])
    path.clear(first.resnet_blocks[3].projection, doubled)
    path.leave(first.resnet_blocks[3], doubled)
    path.clear(first.shortcut_up_sample, doubled)
    for quarter in range(4 * count):
        corner, channel = divmod(quarter, count)
        path.put(first.shortcut_up_sample.weight, (skip + quarter, skip + channel, *divmod(corner, 2)), 1.0)
    path.clear_time(second_time, doubled)
    _pass(path, second, noise, doubled)
    for first, _, second, first_time, second_time in units[1:]:
        path.clear_time(first_time, noise)
        _pass(path, first, noise, noise)
        path.clear_time(second_time, noise)
        if second is not units[-1][2]:
            _pass(path, second, noise, noise)


def _leave(path: _Path, unet: KeyframeUNet, noise: list[int], quarters: list[int]) -> None:
    last = unet.up_samples[-1].resnet_attn_blocks[-1][2]
    norm, _, out = unet.out_layer
    path.clear(last.shortcut_projection, quarters)
    for parameter in (norm.weight, norm.bias, out.weight, out.bias):
        path.hold(parameter)
    path.put(norm.weight, (quarters,), (OFFSET**2 + 1) ** 0.5)
    for i in noise:
        for k, (sign, side) in enumerate(_SIGNS):
            row = 4 * i + k
            path.put(last.shortcut_projection.weight, (row, i, 0, 0), sign)
            path.put(last.shortcut_projection.bias, (row,), side * OFFSET)
            path.put(norm.bias, (row,), -side * OFFSET)
            path.put(out.weight, (i, row, 1, 1), sign / 2)
    # Only here does an estimate of the clip join the noise, through a branch that trains and starts silent.
    branch = last.resnet_blocks[3].projection
    path.put(branch.weight, _ALL, 0.0)
    path.put(branch.bias, _ALL, 0.0)


def path_gains(shares: Tensor) -> Tensor:
    """Return by how much the path multiplies the noisy clip at each signal share: 1 / sqrt(1 - a), as far as it goes.

    The predicted noise is x / sqrt(1 - a) less the estimated clip times sqrt(a / (1 - a)). A path with a gain of one
    leaves what is missing to the branch, which then has to carry noise itself, and shapes stay blobs.
    """
    return (OFFSET**2 + 1) ** 0.5 / (_offsets(shares).square() + _power(shares)).sqrt()


def _power(shares: Tensor) -> Tensor:
    """Mean square of the noisy latents."""
    return shares.square() * LATENT_POWER + 1 - shares.square()


def _offsets(shares: Tensor) -> Tensor:
    """The offset K at which the norm of a + K and a - K multiplies by the gain; at least ``_LEAST_OFFSET``."""
    squares = (OFFSET**2 + 1) * (1 - shares.square()) - _power(shares)
    return squares.clamp(min=_LEAST_OFFSET**2).sqrt()


@torch.no_grad()
def gate_estimate(unet: KeyframeUNet, vectors: Tensor, shares: Tensor) -> None:
    """Let path and last residual branch weigh as the noise level wants: x times its gain, an estimate times its own.

    One hidden channel of the branch lowers the offset of the path; the norm of the others is multiplied by the signal's
    share times the gain, so that behind it the branch estimates the clip at every noise level alike.

    Args:
        unet: changed in place, after ``carry_noise``.
        vectors: ``[N, E]`` time and text vectors as the norms read them, after SiLU.
        shares: ``[N]`` sqrt(alpha_bar) of each.
    """
    branch = unet.up_samples[-1].resnet_attn_blocks[-1][2].resnet_blocks[3]
    linear = branch.group_norm.context_mlp[1]
    lowered = (OFFSET - _offsets(shares)).clamp(min=0)
    channels = linear.weight.shape[0] // 2
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    for rows, target in ((slice(channels), shares * path_gains(shares) - 1), (-1, _silu_inverse(lowered))):
        # The noisiest steps want it the most exactly.
        solution = fit_affine(vectors, target[:, None], ridge=_RIDGE, weights=1 / (shares + _SHARE_FLOOR))[:, 0]
        linear.weight[rows] = solution[:-1]
        linear.bias[rows] = solution[-1]
    # The last channel is that of the offset: its norm keeps nothing of the features.
    linear.weight[channels - 1] = 0
    linear.bias[channels - 1] = -1
    for i in range(unet.config.latent_channels):
        for k, (_, side) in enumerate(_SIGNS):
            branch.projection.weight[4 * i + k, -1] = -side


def _silu_inverse(values: Tensor) -> Tensor:
    """Return what SiLU maps to ``values``, which are zero or more; by Newton's method."""
    found = values.clone()
    for _ in range(30):
        sigmoid = found.sigmoid()
        found = found - (found * sigmoid - values) / (sigmoid * (1 + found * (1 - sigmoid)))
    return found
