"""Tiny networks of every kind and the nesting in which the authors save them."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.checkpoints.loading import build_network
from fusionframes.ff_kernels.models.configs import MoVQConfig, TextConfig
from fusionframes.ff_kernels.models.keyframe_unet import keyframe_positions
from fusionframes.ff_kernels.models.text_encoder import TextProjection
from fusionframes.ff_kernels.verify.cases import fill_weights
from support import tiny

OVERRIDES = {"head_dim": 16, "groups": 8}
UNET = {**OVERRIDES, "num_blocks": (1, 1)}
CONFIGS = {
    "keyframe_v10": replace(tiny.KEYFRAME_V10, **OVERRIDES, num_blocks=(1, 2), num_frames=15),
    "keyframe_v11": replace(tiny.KEYFRAME_V11, **UNET, num_frames=12),
    "keyframe_v11_plain": replace(
        tiny.KEYFRAME_V11, **UNET, num_frames=12, noise_augmentation=False, motion_score=False
    ),
    "interpolation_v10": replace(tiny.INTERPOLATION_V10, **UNET),
    "interpolation_v11": replace(tiny.INTERPOLATION_V11, **UNET),
    "masked": replace(tiny.MASKED, **UNET),
    "movq": tiny.MOVQ,
    "movq_double_z": replace(tiny.MOVQ, double_z=True, attn_resolutions=(256, 128), num_res_blocks=2),
    "video_movq": tiny.VIDEO_MOVQ,
    "video_movq_temporal": replace(tiny.MOVQ, temporal=True),
    "video_movq_narrow": replace(tiny.MOVQ, temporal=True, temporal_kernel_size=(3, 1, 1)),
    "video_movq_no_mid": replace(tiny.MOVQ, temporal=True, temporal_mid_blocks=False),
    "video_movq_attention": replace(tiny.MOVQ, temporal_attention_block=True),
    "video_movq_blocks": replace(tiny.MOVQ, temporal_blocks=True),
    "video_movq_3d": replace(tiny.MOVQ, build_3D_decoder=True),
    "text_encoder": tiny.TEXT,
}
STAGES = ("keyframe", "interpolation", "masked", "video_movq", "movq", "text_encoder", "projection")


def kind_of(name: str) -> Kind:
    stage = next(stage for stage in STAGES if name.startswith(stage))
    config = CONFIGS.get(name)
    return Kind(stage, getattr(config, "family", ""), config)


@cache
def _network(kind: Kind, config: object) -> nn.Module:
    return fill_weights(build_network(kind), 0)


def network_of(name: str) -> nn.Module:
    """Return the network of a kind, made once and not to be changed."""
    return _network(kind_of(name), CONFIGS[name])


@cache
def projection(seed: int = 0) -> dict[str, Tensor]:
    return dict(fill_weights(TextProjection(tiny.TEXT.d_model, tiny.CONTEXT), seed).state_dict())


def nested(name: str) -> dict:
    """Return what the authors hand to ``torch.save``."""
    if name == "projection":
        return {"projection_base": projection(1), "projection_interpolation": projection(2)}
    state = dict(network_of(name).state_dict())
    if not name.startswith(("keyframe", "interpolation", "masked")):
        return state
    nest = {"unet": state, "null_embedding": tiny.draw(tiny.CONTEXT, seed=7)}
    if name == "keyframe_v10":
        nest["projections"] = {f"t5.{key}": value for key, value in projection().items()}
    return nest


def save(folder: Path, name: str, file_name: str | None = None) -> Path:
    path = folder / (file_name or f"{name}.pt")
    torch.save(nested(name), path)
    return path


def run(network: nn.Module) -> Tensor:
    """Run a network once on fixed inputs."""
    config = network.config
    if isinstance(config, MoVQConfig):
        return network.decode(tiny.draw(2, config.z_channels, 4, 4))
    if isinstance(config, TextConfig):
        return network(torch.arange(5)[None], torch.ones(1, 5))
    texts = (*tiny.context(1), torch.tensor([40]))
    samples = 2
    if config.stage == "interpolation":
        conditions = network.prepare(*texts, num_gaps=2, skip_frames=3)
    elif config.stage == "masked":
        conditions = network.prepare(*texts, num_gaps=2, skip_frames=3)
        samples = conditions.samples
    else:
        extra = {"noise_level": 20, "motion_score": 10} if config.family == "1.1" else {}
        conditions = network.prepare(*texts, positions=keyframe_positions(config.family, 2), keyframes=2, **extra)
    return network(tiny.draw(samples, config.num_channels, 4, 4), conditions)


def equal(left: nn.Module, right: nn.Module) -> bool:
    """Whether two networks have the same keys and the same values."""
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(value, right[key]) for key, value in left.items())
