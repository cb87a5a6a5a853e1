"""Linear layer after linear layer folded into one at load time: the same function, computed with less work.

The algebra is done in float64, on the CPU since not every device has it, and stored in the dtype of the weights
(ops/EXACTNESS.md, "Folds at load"; checked at 1e-12). A folded network no longer has the releases' state-dict names, so
folding comes after loading, and a host has to refuse patches of weights by name.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.blocks import Attention, AttentionBlock, ConvBlock
from ..models.layers import is_pointwise
from ..models.movq import Upsample
from ..models.temporal_blocks import MergingConvBlockV10, TemporalSelfAttention
from ..ops import (
    exact,
    nearest_conv,
    nearest_kernels,
    residual_conv,
    rounded,
    temporal_conv_class,
    winograd_conv,
    winograd_taps,
)
from .pages import LetGo, keep_all

# "strict" keeps every layer as released; "fast" folds. Tables of a run hold what the release's own linear layers give,
# in the dtype of the weights, so that nothing else is rounded on either path.
Parity = Literal["strict", "fast"]

_TimeConv = temporal_conv_class(nn.Conv3d)
# Input and output channels from which a 3x3 convolution on a processor goes through ``WinogradConv``.
WINOGRAD_CHANNELS = 128
_WINOGRAD_DTYPES = (torch.float32,)


def require_parity(parity: str) -> None:
    """Refuse what is neither "strict" nor "fast".

    Raises:
        InputError: naming both.
    """
    if parity not in get_args(Parity):
        raise InputError(f"expected a parity of {' or '.join(get_args(Parity))}, got {parity!r}: choose one of them")


@dataclass(frozen=True)
class Target:
    """Where and in which dtype a folded layer will run; None: where and in which its weights are.

    ``is_portable`` leaves out the forms of layers that pay on one kind of device only.
    """

    device: torch.device | None = None
    dtype: torch.dtype | None = None
    is_portable: bool = False

    def like(self, weight: Tensor) -> Tensor:
        """Return what a folded weight has the dtype of: it stays beside the weight that it replaces."""
        return weight if self.dtype is None else weight.new_empty(0, dtype=self.dtype)

    def pays_with_winograd(self, layer: nn.Module) -> bool:
        """Return whether a layer is a 3x3 convolution that half the multiplications make faster.

        That is so on processors, in float32, and where the multiplications outweigh the passes that prepare them: from
        128 channels on whatever the size of the maps (1.0 to 1.45 times; narrower ones gain only on large maps).
        """
        if self.is_portable or type(layer) is not nn.Conv2d or (layer.kernel_size, layer.stride) != ((3, 3), (1, 1)):
            return False
        device, dtype = self.device or layer.weight.device, self.dtype or layer.weight.dtype
        is_single = device.type == "cpu" and dtype in _WINOGRAD_DTYPES
        return is_single and layer.padding == (1, 1) and min(layer.in_channels, layer.out_channels) >= WINOGRAD_CHANNELS


OWN = Target()


@torch.no_grad()
def fold(network: nn.Module, target: Target = OWN, *, done: LetGo = keep_all) -> nn.Module:
    """Fold every pair of linear layers of a U-Net or MoVQ in place and return the network.

    Only layers of ``torch.nn`` are folded; those of a host's namespace stay as they are. What is not folded keeps its
    dtype.

    Args:
        network: ``KeyframeUNet``, ``InterpolationUNet`` or ``MoVQ`` with its weights loaded.
        target: where and in which dtype the network will run, if its weights are not there yet: layers for processors
            in float32 are slower and less exact anywhere else.
        done: called with the weights of every part that was folded, which folding does not read again.
    """
    modules = list(network.modules())
    for module in modules:
        read = list(module.parameters())
        if isinstance(module, ConvBlock):
            _fold_block(module, target)
        elif isinstance(module, TemporalSelfAttention):
            _join_projections(module)
        elif isinstance(module, AttentionBlock) and not module.is_cross:
            _join_projections(module.attention)
        elif isinstance(module, Upsample) and type(module.conv) is nn.Conv2d:
            pays = target.pays_with_winograd(module.conv)
            module.doubled = NearestConv(module.conv, target) if pays else _nearest_then_conv(module.conv, target)
            module.conv = nn.Identity()
        else:
            continue
        done(read)
    use_winograd(network, target)
    return network.requires_grad_(False)


def _fold_block(block: ConvBlock, target: Target) -> None:
    if type(block.projection) is not nn.Conv2d:
        return
    if isinstance(block, MergingConvBlockV10):
        time = _merge_into_conv(block.temporal_projection, block.temporal_merge, target)
        if is_pointwise(block.projection) and block.projection.in_channels < block.projection.out_channels:
            # From half the channels to all of them (ops/EXACTNESS.md, "Point then time").
            time = _point_then_time(block.projection, time, target)
            block.projection = nn.Identity()
        block.folded_time = time
        block.temporal_projection, block.temporal_merge = nn.Identity(), None
    elif isinstance(block.down_sample, nn.Conv2d) and not block.mixes_time:
        block.projection = _conv_then_halve(block.projection, block.down_sample, target)
        block.down_sample = nn.Identity()
    if isinstance(block.up_sample, nn.ConvTranspose2d):
        block.up_sample = _double_then_conv(block.up_sample, block.projection, target)
        block.projection = nn.Identity()


def _like(conv: nn.Module, weight: Tensor, bias: Tensor, like: Tensor) -> nn.Module:
    """Put float64 weights into ``conv`` in the dtype, device and memory format of the layer it replaces."""
    weight = rounded(weight, like)
    weight = weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(rounded(bias, like), requires_grad=False)
    return conv


def _slide(kernel: Callable[[int, int], Tensor]) -> Tensor:
    """Sum 3x3 kernels placed at the four offsets (0 or 1 down, 0 or 1 right) of a 4x4 one."""
    offsets = itertools.product(range(2), repeat=2)
    return sum(nn.functional.pad(kernel(y, x), (x, 1 - x, y, 1 - y)) for y, x in offsets)


def _conv_then_halve(conv: nn.Conv2d, halve: nn.Conv2d, target: Target = OWN) -> nn.Conv2d:
    """Fold a 3x3 convolution and the 2x2 one with stride 2 behind it into one of 4x4 with stride 2."""
    first, second = exact(conv.weight), exact(halve.weight)
    weight = _slide(lambda y, x: torch.einsum("om,mihw->oihw", second[:, :, y, x], first))
    bias = exact(halve.bias) + second.sum(dim=(2, 3)) @ exact(conv.bias)
    folded = nn.Conv2d(conv.in_channels, halve.out_channels, 4, stride=2, padding=1, device="meta")
    return _like(folded, weight, bias, target.like(conv.weight))


class DoubledConv(nn.Module):
    """Transposed 4x4 convolution with stride 2 whose bias differs at the border of the picture.

    The bias of the first of the two folded layers is seen through the 3x3 taps of the second, some of which fall
    outside of the picture there: nine values in all, of which the convolution adds that of the inside.
    """

    def __init__(self, conv: nn.ConvTranspose2d, border: Tensor) -> None:
        super().__init__()
        self.conv = conv
        # [3, 3, C] for top, middle, bottom and left, middle, right, less the value of the inside.
        self.register_buffer("border", border, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C', 2H, 2W]``."""
        out = self.conv(x)
        lines = out.permute(0, 2, 3, 1)  # [N, 2H, 2W, C']
        for y, row in ((0, 0), (-1, 2)):
            lines[:, y, 1:-1].add_(self.border[row, 1])
            lines[:, y, 0].add_(self.border[row, 0])
            lines[:, y, -1].add_(self.border[row, 2])
        lines[:, 1:-1, 0].add_(self.border[1, 0])
        lines[:, 1:-1, -1].add_(self.border[1, 2])
        return out


def _double_then_conv(double: nn.ConvTranspose2d, conv: nn.Conv2d, target: Target = OWN) -> DoubledConv:
    """Fold a transposed 2x2 convolution and the 3x3 one behind it into one transposed 4x4."""
    first, second = exact(double.weight), exact(conv.weight)
    # A pixel put at offset y is seen by the tap k of the second layer from the place y + 1 - k: hence the flip.
    weight = _slide(lambda y, x: torch.einsum("im,omhw->iohw", first[:, :, y, x], second.flip(2, 3)))
    inner = exact(double.bias)[None, :, None, None].expand(1, -1, 3, 3)
    border = nn.functional.conv2d(inner, second, exact(conv.bias), padding=1)[0].permute(1, 2, 0)
    bias = border[1, 1].clone()
    folded = nn.ConvTranspose2d(double.in_channels, conv.out_channels, 4, stride=2, padding=1, device="meta")
    like = target.like(conv.weight)
    return DoubledConv(_like(folded, weight, bias, like), rounded(border - bias, like))


def _nearest_then_conv(conv: nn.Conv2d, target: Target = OWN) -> nn.ConvTranspose2d:
    """Fold nearest doubling and the 3x3 convolution behind it into one transposed 4x4."""
    seen = exact(conv.weight).flip(2, 3).transpose(0, 1)
    weight = _slide(lambda y, x: seen)
    folded = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1, device="meta")
    return _like(folded, weight, exact(conv.bias), target.like(conv.weight))


class WinogradConv(nn.Module):
    """3x3 convolution with its weights in the form of ``ops.winograd_conv``, which are twice as many."""

    adds_residual = True

    def __init__(self, conv: nn.Conv2d, target: Target = OWN) -> None:
        super().__init__()
        weight = conv.weight.to(target.dtype or conv.weight.dtype)
        self.taps = nn.Parameter(winograd_taps(weight), requires_grad=False)
        self.bias = conv.bias

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C', H, W]``."""
        return winograd_conv(x, self.taps, self.bias, residual=residual)


class NearestConv(nn.Module):
    """Nearest doubling and a 3x3 convolution; its weights, no more than before, are in the form of ``nearest_conv``."""

    def __init__(self, conv: nn.Conv2d, target: Target = OWN) -> None:
        super().__init__()
        weight = conv.weight.to(target.dtype or conv.weight.dtype)
        self.kernels = nn.Parameter(nearest_kernels(weight), requires_grad=False)
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C', 2H, 2W]``."""
        return nearest_conv(x, self.kernels, self.bias)


def use_winograd(network: nn.Module, target: Target) -> None:
    """Put the 3x3 convolutions that pay with it into the form of ``WinogradConv``: the last of the folds."""
    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            if target.pays_with_winograd(layer):
                setattr(module, name, WinogradConv(layer, target))


class FoldedTimeConv(nn.Module):
    """Convolution along time with what was folded into it; the first and last sample of a clip may have a bias less.

    ``edges`` is ``[2, C]``: what the tap before the first sample and the tap after the last would have brought.
    """

    adds_residual = True

    def __init__(self, conv: nn.Module, edges: Tensor | None = None) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("edges", edges, persistent=False)

    def forward(self, clips: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map ``[B, C, T, P]`` to ``[B, C', T, P]``, plus ``residual``."""
        if residual is None:
            out = self.conv(clips)
        else:
            weight = self.conv.weight.squeeze(-1)
            out = residual_conv(clips, weight, self.conv.bias, residual, (self.conv.padding[0], 0))
        if self.edges is not None:
            out[:, :, 0].sub_(self.edges[0, :, None])
            out[:, :, -1].sub_(self.edges[1, :, None])
        return out


def _merge_into_conv(conv: nn.Module, merge: Tensor, target: Target = OWN) -> FoldedTimeConv:
    """Fold ``(1 - a) * x + a * conv(x)`` into the convolution."""
    share = exact(merge)
    weight, channels = share * exact(conv.weight), conv.in_channels
    weight[:, :, 1, 0, 0] += (1 - share) * torch.eye(channels, dtype=weight.dtype, device=weight.device)
    folded = _TimeConv(channels, channels, (3, 1, 1), padding=(1, 0, 0), device="meta")
    return FoldedTimeConv(_like(folded, weight, share * exact(conv.bias), target.like(conv.weight)))


def _point_then_time(point: nn.Conv2d, time: FoldedTimeConv, target: Target = OWN) -> FoldedTimeConv:
    """Fold a 1x1 convolution into the convolution along time behind it."""
    first, second = exact(point.weight)[:, :, 0, 0], exact(time.conv.weight)
    weight = torch.einsum("omthw,mi->oithw", second, first)
    brought = torch.einsum("omt,m->to", second[..., 0, 0], exact(point.bias))  # [3, C]
    folded = _TimeConv(point.in_channels, time.conv.out_channels, (3, 1, 1), padding=(1, 0, 0), device="meta")
    like = target.like(point.weight)
    conv = _like(folded, weight, exact(time.conv.bias) + brought.sum(dim=0), like)
    return FoldedTimeConv(conv, rounded(brought[[0, 2]], like))


def _join_projections(attention: Attention) -> None:
    """Put the projections to queries, keys and values of a self attention into one matrix."""
    layers = (attention.to_query, attention.to_key, attention.to_value)
    if any(type(layer) is not nn.Linear for layer in layers):
        return
    weight = torch.cat([layer.weight for layer in layers])
    attention.joint = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    attention.joint.weight = nn.Parameter(weight, requires_grad=False)
    attention.to_query = attention.to_key = attention.to_value = nn.Identity()
