"""Tiny networks of every kind with reproducible weights, small enough for a test."""

from dataclasses import replace

import torch
from torch import nn

from fusionframes.ff_kernels.models.configs import MoVQConfig, TextConfig, UNetConfig
from fusionframes.ff_kernels.models.unets import UNETS
from fusionframes.ff_kernels.verify.cases import fill_weights

CONTEXT = 24
SIZES = {
    "model_channels": 16, "init_channels": 16, "time_embed_dim": 32, "context_dim": CONTEXT, "groups": 4,
    "head_dim": 8, "dim_mult": (1, 2), "num_blocks": (2, 2), "add_cross_attention": (False, True),
    "add_self_attention": (False, True),
}  # fmt: skip
KEYFRAME_V10 = UNetConfig("1.0", "keyframe", 4, 4, num_frames=3, **SIZES)
KEYFRAME_V11 = UNetConfig("1.1", "keyframe", 9, 4, num_frames=3, noise_augmentation=True, motion_score=True, **SIZES)
INTERPOLATION_V10 = UNetConfig("1.0", "interpolation", 20, 12, **SIZES)
INTERPOLATION_V11 = UNetConfig("1.1", "interpolation", 20, 12, **SIZES)
MASKED = UNetConfig("1.0", "masked", 9, 4, num_frames=5, **SIZES)
MOVQ = MoVQConfig(ch=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(128,), resolution=256, groups=8)
VIDEO_MOVQ = replace(MOVQ, temporal=True, temporal_attention_block=True)
TEXT = TextConfig(vocab_size=160, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)


def unet(config: UNetConfig, seed: int = 0, **options) -> nn.Module:
    return fill_weights(UNETS[config.stage](config, **options), seed)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def context(rows: int, length: int = 6, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Context whose last token of every row is the zero behind the prompt."""
    values = draw(rows, length, CONTEXT, seed=seed)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[:, -1] = 0
    return values * mask[..., None], mask


def relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out.double() - expected.double()).norm() / expected.double().norm()).item()
