"""Weights in core's quantised formats: set apart when a file is read, given to core's layers when it is loaded.

Core keeps the weights of linear layers and tables in such formats; where it has no layer for one, it is widened.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...ff_kernels.checkpoints.packing import CHANNEL_FORMAT, LINEAR_FORMAT, MARKER, SCALE, TABLE_KEY
from ...ff_kernels.errors import CheckpointError
from .._compat import dequantised, keeps_quantised, quantised_formats, read_tensors

# What lies beside a quantised weight, by the end of its name.
SIDES = (
    MARKER, SCALE, "weight_scale_2", "input_scale", "pre_quant_scale", "weight_s_rel", "weight_s_channel",
    "weight_codebook",
)  # fmt: skip
# Two values in a byte.
HALVED = ("nvfp4", "convrot_w4a4", "asym_w4a8_int8")
# A weight is its stored values times its scales, rotated ones aside. The last is the engine's own, of any layer.
SCALED = ("float8_e4m3fn", "float8_e5m2", LINEAR_FORMAT, CHANNEL_FORMAT)
STORED = {LINEAR_FORMAT: torch.int8, CHANNEL_FORMAT: torch.int8}


@dataclass(frozen=True)
class Packed:
    """A quantised weight.

    Attributes:
        parts: its tensors by the end of their names: ``weight``, ``weight_scale``, ``comfy_quant`` and so on.
        told: what the marker says.
        shape: of the weight, widened.
    """

    parts: dict[str, Tensor]
    told: dict[str, Any]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the format."""
        return str(self.told.get("format"))

    @property
    def is_scaled(self) -> bool:
        """Whether the weight is its stored values times its scales."""
        return self.name in SCALED and not self.told.get("convrot")

    def is_kept_by(self, layer: nn.Module) -> bool:
        """Return whether core's layer in the place of one of torch's keeps the weight as it is."""
        return keeps_quantised(type(layer).__name__, self.name)

    def widen(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in ``dtype``."""
        if not self.is_scaled:
            wide = dequantised({k: v for k, v in self.parts.items() if k != "pre_quant_scale"}, self.shape, dtype)
            smoothing = self.parts.get("pre_quant_scale")
            return wide if smoothing is None else (wide.float() * smoothing.float()).to(dtype)
        weight, scale = self.parts["weight"].float(), self.parts[SCALE].float()
        if scale.ndim != weight.ndim:
            scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
        return (weight * scale).to(dtype)


@dataclass(frozen=True)
class QuantReader:
    """Core's reader for the engine: what it returns has tensors without data in the places of quantised weights.

    Attributes:
        packed: the weights that were set apart, by the number of the tensor that stands for each, beside that tensor.
    """

    packed: dict[int, tuple[Tensor, Packed]] = field(default_factory=dict)

    def __call__(self, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Open a safetensors file.

        Raises:
            CheckpointError: if a quantised weight is incomplete, or of a format that this core does not know.
        """
        tensors, metadata = read_tensors(path)
        for key in [key for key in tensors if key.endswith(f".{MARKER}")]:
            layer = key.removesuffix(MARKER)
            parts = {side: tensors.pop(layer + side) for side in SIDES if layer + side in tensors}
            parts["weight"] = tensors.get(f"{layer}weight")
            packed = _packed(path, layer[:-1], parts, tensors.get(f"{layer}bias"))
            stand_in = torch.empty(packed.shape, device="meta")
            self.packed[id(stand_in)] = stand_in, packed
            tensors[f"{layer}weight"] = stand_in
        # Its table speaks of weights that are no longer among the tensors.
        return tensors, {key: value for key, value in metadata.items() if key != TABLE_KEY}

    def of(self, tensors: dict[str, Tensor]) -> dict[str, Packed]:
        """Return the quantised ones of a reader's tensors, by name."""
        return {name: self.packed[id(tensor)][1] for name, tensor in tensors.items() if id(tensor) in self.packed}


def _packed(path: Path, layer: str, parts: dict[str, Tensor | None], bias: Tensor | None) -> Packed:
    """Check what belongs to a quantised weight."""
    told = json.loads(bytes(parts[MARKER].tolist()))
    name = str(told.get("format"))
    stored = {**STORED, **quantised_formats()}
    if name not in stored or (name not in quantised_formats() and told.get("convrot")):
        raise CheckpointError(
            f"expected weights in formats that this ComfyUI reads ({', '.join(stored)}) in '{path}', got '{layer}' as "
            f"{name}: update ComfyUI, or take a file in another format"
        )
    weight, scale = parts["weight"], parts.get("weight_s_rel" if name == "asym_w4a8_int8" else SCALE)
    is_whole = weight is not None and scale is not None and weight.dtype == stored[name]
    if name == "nvfp4":
        is_whole = is_whole and "weight_scale_2" in parts
    if not is_whole or (name in SCALED and not _fits(scale, weight)):
        found = sorted(part for part, tensor in parts.items() if tensor is not None)
        raise CheckpointError(
            f"expected a {name} weight with its scales as '{layer}' in '{path}', got an incomplete or misshapen one "
            f"({', '.join(found)}): download the file again"
        )
    shape = list(weight.shape)
    if name in HALVED:
        shape[-1] *= 2
    # Rows are filled up to whole blocks.
    if name not in SCALED and bias is not None:
        shape[0] = bias.shape[0]
    return Packed(parts, told, tuple(shape))


def _fits(scale: Tensor, weight: Tensor) -> bool:
    """Return whether a scale is one value, one for each row, or shaped to multiply the weight."""
    if scale.ndim == weight.ndim:
        return all(a in (1, b) for a, b in zip(scale.shape, weight.shape, strict=True))
    return scale.numel() == 1 or scale.shape == weight.shape[:1]


def parted(tensors: dict[str, Tensor], packed: dict[str, Packed]) -> dict[str, Tensor]:
    """Return tensors with every quantised weight as the file has it."""
    out = {name: tensor for name, tensor in tensors.items() if name not in packed}
    for name, weight in packed.items():
        out.update({name.removesuffix("weight") + part: tensor for part, tensor in weight.parts.items()})
    return out


def widened(tensors: dict[str, Tensor], packed: dict[str, Packed], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return tensors with quantised weights widened to a dtype."""
    return {name: packed[name].widen(dtype) if name in packed else tensor for name, tensor in tensors.items()}
