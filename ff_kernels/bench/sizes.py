"""Parameters of the paper's configurations at the released sizes, counted without making them."""

from dataclasses import replace

from ..models.configs import KEYFRAME_V10, TEMPORAL_VARIANTS, MoVQConfig, check_variant
from ..models.keyframe_unet import KeyframeUNet
from ..models.movq import MoVQ
from ..models.temporal_blocks import is_temporal

ALL_VARIANTS = "all"
_KINDS = {
    "Conv1dAttn1dLayers": "layers inside the spatial blocks",
    "Conv1dAttn1dBlocks": "blocks of their own; released",
    "Conv3dAttn1dBlocks": "blocks of their own, 3x3x3",
    "Conv1dAttn3dBlocks": "blocks of their own, attention in 2x2xT windows",
}


def keyframe_parameters(variant: str) -> tuple[int, int]:
    """Return all parameters of a temporal variant of the 1.0 keyframe U-Net, and those of its parts over time.

    Raises:
        InputError: if there is no such variant.
    """
    network = KeyframeUNet(replace(KEYFRAME_V10, temporal_variant=variant), device="meta")
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if is_temporal(name))


def decoder_parameters(config: MoVQConfig) -> int:
    """Return the parameters of a MoVQ decoder (the last column of the paper's table 3)."""
    return sum(parameter.numel() for parameter in MoVQ(config, device="meta").decoder.parameters())


def variant_lines(name: str) -> list[str]:
    """Return the table of ``info --variant`` about one variant, or with "all" about every one.

    Raises:
        InputError: if there is no such variant.
    """
    if name != ALL_VARIANTS:
        check_variant(name)
    lines = [f"{'variant':20} {'parameters':>15} {'over time':>15}  what mixes time"]
    for variant in TEMPORAL_VARIANTS if name == ALL_VARIANTS else (name,):
        total, temporal = keyframe_parameters(variant)
        lines.append(f"{variant:20} {total:15,} {temporal:15,}  {_KINDS[variant]}")
    return lines
