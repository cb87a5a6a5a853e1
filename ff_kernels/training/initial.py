"""Weights before training: the paper's choices where it names them, ours where a tiny net needs others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..models.blocks import ConditionalGroupNorm
from ..models.keyframe_unet import KeyframeUNet
from ..models.masked_unet import MaskedUNet
from ..models.movq import ResnetBlock, TemporalAttnBlock, TemporalResnetBlock
from ..models.temporal_blocks import MergingConvBlockV10, MixedConvBlock, TemporalResNetBlock, TemporalSelfAttention
from ..models.text_encoder import RMSNorm, SelfAttention

MERGE_START = 0.5
# The order of the keyframes reaches the network through one norm per temporal attention, and from torch's own start
# hardly at all. These make it half of a normal channel from the first step on.
POSITION_GAIN = 8.0
POSITION_STD = 0.07


@torch.no_grad()
def initialise(network: nn.Module) -> nn.Module:
    """Set the start values of every block that torch's own defaults do not suit, and return the network."""
    for module in network.modules():
        if isinstance(module, ConditionalGroupNorm):
            nn.init.normal_(module.context_mlp[1].weight, std=POSITION_STD if module.rows == "position" else 0.0)
            nn.init.zeros_(module.context_mlp[1].bias)
        elif isinstance(module, (KeyframeUNet, MaskedUNet)):
            module.to_temporal_embed[3].weight.mul_(POSITION_GAIN)
        elif isinstance(module, tuple(_LAST_LAYERS)):
            _silence(next(last(module) for kind, last in _LAST_LAYERS.items() if isinstance(module, kind)))
        elif isinstance(module, MixedConvBlock):
            nn.init.dirac_(module.temporal_projection.weight)
            nn.init.zeros_(module.temporal_projection.bias)
        elif isinstance(module, MergingConvBlockV10):
            _start_as_identity(module.temporal_projection, module.temporal_merge)
        elif isinstance(module, ResnetBlock) and module.is_temporal:
            _start_as_identity(module.temporal_projection1, module.temporal_merge1)
            _start_as_identity(module.temporal_projection2, module.temporal_merge2)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, SelfAttention):
            # T5 has no 1/sqrt(d) in its attention; the start values of the queries stand in for it.
            config = module.config
            nn.init.normal_(module.q.weight, std=(config.d_model * config.d_kv) ** -0.5)
    return network


# Residual branches over time, which start by adding nothing, and the layer that ends each.
_LAST_LAYERS: dict[type, Callable[[Any], nn.Module]] = {
    TemporalResNetBlock: lambda block: block.temporal_resnet_blocks[-1][-1],
    TemporalSelfAttention: lambda attention: attention.output_layer,
    TemporalResnetBlock: lambda block: block.conv2,
    TemporalAttnBlock: lambda attention: attention.proj_out,
}


def _silence(layer: nn.Module) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _start_as_identity(conv: nn.Module, merge: nn.Parameter) -> None:
    """Let a temporal convolution start by copying its frame.

    The paper starts it at zero with a merge of zero, which learns slowly at first because each of the two
    multiplies the other's gradient; a copy merged by half leaves the network's output just as unchanged.
    """
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)
    merge.fill_(MERGE_START)
