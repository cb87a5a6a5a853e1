"""Both releases at a quarter of their widths: all blocks of the released networks, with random weights in memory."""

import math
from collections.abc import Collection
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.checkpoints.folder import ModelFiles
from fusionframes.ff_kernels.checkpoints.loading import build_network
from fusionframes.ff_kernels.checkpoints.reading import Contents
from fusionframes.ff_kernels.demo.steps import train_tokenizer
from fusionframes.ff_kernels.models import configs
from fusionframes.ff_kernels.models.text_encoder import TextProjection

_UNET = {
    "model_channels": 96, "init_channels": 48, "time_embed_dim": 384, "context_dim": 1024, "groups": 8, "head_dim": 16,
}  # fmt: skip
_MOVQ = {"ch": 64, "groups": 8}
# Six of the 32 blocks, which are all alike, and as many words as the tokenizer here has.
TEXT = configs.TextConfig(vocab_size=160, d_model=1024, d_kv=64, d_ff=4096, num_layers=6)
_POOL_VALUES = 4_200_000


def files(family: str, stages: Collection[str]) -> ModelFiles:
    """Return files of some stages of a release; the keyframes' hold a projection."""
    number = family.replace(".", "")
    config = {
        "keyframe": replace(getattr(configs, f"KEYFRAME_V{number}"), **_UNET),
        "interpolation": replace(getattr(configs, f"INTERPOLATION_V{number}"), **_UNET),
        "movq": replace(configs.MOVQ, **_MOVQ),
        "video_movq": replace(configs.VIDEO_MOVQ, **_MOVQ),
        "text_encoder": TEXT,
    }
    kinds = [Kind(stage, getattr(config[stage], "family", ""), config[stage]) for stage in stages]
    opened = {kind.stage: (_contents(kind), kind) for kind in kinds}
    return ModelFiles(Path("quarter"), family, opened, train_tokenizer())


def _contents(kind: Kind) -> Contents:
    wanted = dict(build_network(kind, device="meta").state_dict())
    if kind.stage in configs.STAGES:
        wanted["null_embedding"] = torch.empty(kind.config.context_dim, device="meta")
    if kind.stage == "keyframe":
        projection = TextProjection(TEXT.d_model, kind.config.context_dim, device="meta").state_dict()
        wanted |= {f"projections.t5.{key}": value for key, value in projection.items()}
    return Contents(Path(kind.stage), {key: _weight(key, value.shape) for key, value in wanted.items()}, {})


def _weight(name: str, shape: torch.Size) -> Tensor:
    """Return a weight that keeps the size of activations; large ones share their memory, and so cost no time."""
    start = sum(name.encode()) % 1009
    if len(shape) == 1:
        values = 0.1 * _pool(0)[start : start + shape[0]]
        return 1 + values if name.endswith("weight") else values
    halvings = round(math.log2(shape[1:].numel()) / 2)
    return _pool(halvings)[start : start + shape.numel()].view(shape)


@cache
def _pool(halvings: int) -> Tensor:
    if halvings:
        return _pool(0) * 2.0**-halvings
    return torch.randn(_POOL_VALUES, generator=torch.Generator().manual_seed(16))
