"""Tiny networks of every kind and the nesting in which the authors save them."""

from dataclasses import replace
from pathlib import Path

import torch
from support import tiny
from torch import Tensor, nn

from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.checkpoints.loading import build_network
from fusionframes.ff_kernels.models.text_encoder import TextProjection
from fusionframes.ff_kernels.verify import fill_weights

OVERRIDES = {"head_dim": 16, "groups": 8}
UNET = {**OVERRIDES, "num_blocks": (1, 2)}
CONFIGS = {
    "keyframe_v10": replace(tiny.KEYFRAME_V10, **UNET, num_frames=15),
    "keyframe_v11": replace(tiny.KEYFRAME_V11, **UNET, num_frames=12),
    "interpolation_v10": replace(tiny.INTERPOLATION_V10, **UNET),
    "interpolation_v11": replace(tiny.INTERPOLATION_V11, **UNET),
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


def stage_of(name: str) -> str:
    return next(s for s in ("keyframe", "interpolation", "video_movq", "movq", "text_encoder") if name.startswith(s))


def family_of(name: str) -> str:
    return {"v10": "1.0", "v11": "1.1"}.get(name[-3:], "")


def network_of(name: str, seed: int = 0) -> nn.Module:
    return fill_weights(build_network(Kind(stage_of(name), family_of(name), CONFIGS[name])), seed).eval()


def projection(seed: int = 0) -> dict[str, Tensor]:
    network = fill_weights(TextProjection(tiny.TEXT.d_model, tiny.CONTEXT), seed)
    return {key: value.clone() for key, value in network.state_dict().items()}


def nested(name: str, seed: int = 0) -> dict:
    """Return what the authors hand to ``torch.save`` for a network."""
    if name == "projection":
        return {"projection_base": projection(1), "projection_interpolation": projection(2)}
    state = {key: value.detach() for key, value in network_of(name, seed).state_dict().items()}
    if stage_of(name) not in ("keyframe", "interpolation"):
        return state
    nest = {"unet": state, "null_embedding": tiny.draw(tiny.CONTEXT, seed=7)}
    if name == "keyframe_v10":
        nest["projections"] = {f"t5.{key}": value for key, value in projection().items()}
    return nest


def save(folder: Path, name: str, file_name: str = "", seed: int = 0) -> Path:
    path = folder / (file_name or f"{name}.pt")
    torch.save(nested(name, seed), path)
    return path


def damaged(data: bytes, random) -> bytes:
    """Return ``data`` with a few random flips, cuts or insertions, most of them in its structure."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        edge = random.choice((64, 2048, len(out)))
        place = random.randrange(min(edge, len(out))) if random.random() < 0.5 else -random.randrange(
            1, min(edge, len(out)) + 1) % len(out)
        kind = random.choice(("flip", "flip", "flip", "byte", "cut", "insert", "end"))
        if kind == "flip":
            out[place] ^= 1 << random.randrange(8)
        elif kind == "byte":
            out[place] = random.randrange(256)
        elif kind == "cut":
            del out[place : place + random.randrange(1, 64)]
        elif kind == "insert":
            out[place:place] = random.randbytes(random.randrange(1, 64))
        else:
            del out[place:]
        if not out:
            break
    return bytes(out)
