"""Weights in 8 bit in files, spelled as ComfyUI's own quantised ones (checkpoints/README.md, "Weights in 8 bit")."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..ops.rounding import SCALE, Rounded

MARKER = "comfy_quant"
# The other spelling of the markers: one table in the metadata of the file.
TABLE_KEY = "_quantization_metadata"
# Core knows linear layers in 8 bit; what it does not know has a name of its own, and core refuses it.
LINEAR_FORMAT, CHANNEL_FORMAT = "int8_tensorwise", "ff_int8_channel"
_ADVICE = "take the file that it was made from"


def marker_of(layer: nn.Module) -> dict[str, Any]:
    """Return what says in a file how a layer's weight is stored."""
    if type(layer) is nn.Linear:
        # The product is that of the widened weights: core's own in whole numbers would round the other side as well.
        return {"format": LINEAR_FORMAT, "full_precision_matrix_mult": True}
    return {"format": CHANNEL_FORMAT}


def table_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the table of markers in the metadata of a file, by layer.

    Raises:
        ValueError: if it is no such table.
    """
    layers = json.loads(metadata.get(TABLE_KEY, '{"layers": {}}'))["layers"]
    if not isinstance(layers, dict):
        raise ValueError(f"a table of {type(layers).__name__}")
    return layers


def set_apart(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part what belongs to weights in 8 bit from a file's tensors.

    Args:
        path: for messages.
        tensors: of the file, markers included.

    Returns:
        The tensors without markers and scales, and the scale of every weight in 8 bit by the weight's name, float32,
        shaped to multiply it.

    Raises:
        CheckpointError: if a weight is stored in a way that is not known here, or a scale is missing or misshapen.
    """
    plain, scales = dict(tensors), {}
    for key in [key for key in tensors if key.endswith(f".{MARKER}")]:
        layer = key.removesuffix(f".{MARKER}")
        told = _told(path, key, plain.pop(key))
        weight, scale = plain.get(f"{layer}.weight"), plain.pop(f"{layer}.{SCALE}", None)
        if told.get("format") not in (LINEAR_FORMAT, CHANNEL_FORMAT) or told.get("convrot"):
            raise CheckpointError(
                f"expected weights in 16 or 32 bit, or in 8 bit per channel, in '{path}', got '{layer}' as "
                f"{told.get('format')!r}{' with rotations' if told.get('convrot') else ''}: {_ADVICE}"
            )
        scale = None if scale is None else _shaped(scale, weight)
        if scale is None or weight is None or weight.dtype is not torch.int8:
            raise CheckpointError(
                f"expected an 8-bit weight with its scales as '{layer}' in '{path}', got an incomplete or misshapen "
                "one: download the file again"
            )
        scales[f"{layer}.weight"] = scale
    return plain, scales


def _told(path: Path, key: str, marker: Tensor) -> dict[str, Any]:
    try:
        told = json.loads(bytes(marker.flatten().tolist()))
        return told if isinstance(told, dict) else {}
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"expected to read how a weight is stored in '{key}' of '{path}', got damaged words: download it again"
        ) from error


def _shaped(scale: Tensor, weight: Tensor | None) -> Tensor | None:
    """Return a scale shaped to multiply a weight, or None if it fits none."""
    if weight is None or not scale.is_floating_point():
        return None
    scale = scale.float()
    scale = scale.reshape([1] * weight.ndim) if scale.numel() == 1 else scale
    fits = scale.ndim == weight.ndim and all(a in (1, b) for a, b in zip(scale.shape, weight.shape, strict=True))
    return scale if fits else None


def widened(tensors: Mapping[str, Tensor], scales: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return tensors with those in 8 bit multiplied by their scales, in a dtype."""
    return {
        key: Rounded(tensor, scales[key], dtype).wide() if key in scales else tensor for key, tensor in tensors.items()
    }
