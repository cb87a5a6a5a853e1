"""A complete release at tiny sizes, saved in the authors' file formats."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from fusionframes.ff_kernels.checkpoints.conversion import write_checkpoint
from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.demo.steps import train_tokenizer
from fusionframes.ff_kernels.models.movq import MoVQ
from fusionframes.ff_kernels.models.text_encoder import TextEncoder, TextProjection
from fusionframes.ff_kernels.verify.cases import fill_weights

from . import tiny


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def write(folder: Path, family: str, without: tuple[str, ...] = ()) -> None:
    """Write keyframe and interpolation U-Nets, decoders, text encoder, projections and tokenizer."""
    is_v10 = family == "1.0"
    projection = fill_weights(TextProjection(tiny.TEXT.d_model, tiny.CONTEXT), 4)
    null = {"null_embedding": tiny.draw(tiny.CONTEXT, seed=5)}
    configs = {
        "keyframe": tiny.KEYFRAME_V10 if is_v10 else tiny.KEYFRAME_V11,
        "interpolation": tiny.INTERPOLATION_V10 if is_v10 else tiny.INTERPOLATION_V11,
    }
    inside = {f"projections.t5.{k}": v for k, v in _tensors(projection).items()} if is_v10 else {}
    parts = {
        "keyframe": (
            Kind("keyframe", family, configs["keyframe"]),
            {**_tensors(tiny.unet(configs["keyframe"])), **null, **inside},
        ),
        "interpolation": (
            Kind("interpolation", family, configs["interpolation"]),
            {**_tensors(tiny.unet(configs["interpolation"], 1)), **null},
        ),
        "movq": (Kind("movq", "", tiny.MOVQ), _tensors(fill_weights(MoVQ(tiny.MOVQ), 2))),
        "text_encoder": (Kind("text_encoder", "", tiny.TEXT), _tensors(fill_weights(TextEncoder(tiny.TEXT), 3))),
    }
    if not is_v10:
        video = fill_weights(MoVQ(tiny.VIDEO_MOVQ), 2)
        parts["video_movq"] = (Kind("video_movq", "", tiny.VIDEO_MOVQ), _tensors(video))
        save_file({f"projection_base.{k}": v for k, v in _tensors(projection).items()}, folder / "t5.safetensors")
    for name, (kind, tensors) in parts.items():
        if name not in without:
            write_checkpoint(folder / f"{name}.safetensors", kind, tensors, None)
    (folder / "spiece.model").write_bytes(train_tokenizer())
    (folder / "notes.json").write_text(json.dumps({"family": family}))
