"""Any readable weights file to one safetensors file, a slice at a time, so that memory stays small."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import atomic_path
from ..ops.rounding import SCALE, Report, judged, layers_to_round, rounded
from .detection import TIED_COPY, UNET_STAGES, Kind, detect
from .folding import Target
from .loading import check_contents, load_as_stored, tensors_of
from .lora import merge_lora, read_lora
from .packing import MARKER, marker_of
from .pages import page_out
from .reading import (
    FOLDED_KEY,
    LATENTS_KEY,
    LEFT_KEY,
    METADATA_KEY,
    Contents,
    pack_metadata,
    read_contents,
    require_as_released,
)

SLICE_BYTES = 32 * 2**20
# Where tensors lie in a file, in bytes: a processor sums weights mapped from other places in another order.
ALIGNMENT = 64

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
          torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL", torch.uint8: "U8",
          torch.int8: "I8"}  # fmt: skip


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    overrides: Mapping[str, Any] | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
    folds: bool = False,
    rounding: Report | None = None,
) -> Kind:
    """Write ``source`` as one safetensors file with its configuration in the metadata.

    The network's tensors keep their names; null embedding and projections lie beside them. The file appears
    under its name only when it is complete.

    Args:
        source: anything ``load`` reads.
        target: file to write, ending in ``.safetensors``.
        dtype: dtype of the floating tensors; default as stored. The null embedding stays as stored.
        overrides: configuration that shapes cannot tell.
        loras: files with their strengths to merge into a U-Net's weights.
        folds: fold the layers of a U-Net (``folding.fold``), which holds what is folded in memory.
        rounding: round the large layers of a U-Net or text encoder to 8 bit and fill this with what that did.

    Returns:
        What the file is.

    Raises:
        CheckpointError: if the source is not complete weights of FusionFrames, or is in 8 bit already, or cannot be
            folded or rounded, or the target has another suffix.
        OutputError: if the target cannot be written.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise CheckpointError(f"expected a target that ends in .safetensors, got '{target}': change its suffix")
    contents = read_contents(source)
    kind = detect(contents, overrides)
    if contents.scales or contents.packed:
        require_as_released(contents, "a conversion")
    for path, strength in loras:
        contents = merge_lora(contents, read_lora(path), strength)
    _, tensors, extras = check_contents(contents, kind, is_as_released=False)
    notes = {LATENTS_KEY: contents.metadata.get(LATENTS_KEY)}
    if folds or contents.is_folded or rounding is not None:
        network = _network(contents, kind, dtype, folds)
        notes[FOLDED_KEY] = folds or contents.is_folded
        tensors = tensors_of(network)
        if rounding is not None:
            tensors.update(_rounded(network, rounding))
            notes[LEFT_KEY] = rounding.left
    _write(target, kind, {**tensors, **extras}, dtype, notes)
    return kind


def _network(contents: Contents, kind: Kind, dtype: torch.dtype | None, folds: bool) -> nn.Module:
    if folds and kind.stage not in UNET_STAGES:
        raise CheckpointError(
            f"expected a U-Net to fold in '{contents.path}', got {kind.title}: a MoVQ is folded when it is loaded, for "
            "the device it runs on, and the others have nothing to fold"
        )
    if kind.stage not in (*UNET_STAGES, "text_encoder"):
        raise CheckpointError(
            f"expected a U-Net or a text encoder to round to 8 bit in '{contents.path}', got {kind.title}: leave it in "
            "16 bit, it is small"
        )
    target = Target(torch.device("cpu"), dtype, is_portable=True)
    return load_as_stored(contents, kind, target=target, parity="fast" if folds or contents.is_folded else "strict")[0]


@dataclass(frozen=True)
class _ToRound:
    """A weight that is rounded to 8 bit anew when it is written: a text encoder in 8 bit need not fit into memory."""

    layer: nn.Module
    weight: Tensor
    dtype = torch.int8

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    def made(self) -> Tensor:
        data = rounded(self.layer, self.weight, torch.float32).data
        page_out(self.weight)
        return data


def _rounded(network: nn.Module, report: Report) -> dict[str, Tensor | _ToRound]:
    """Return what takes the place of weights that are rounded, and what a file holds beside them."""
    found: dict[str, Tensor | _ToRound] = {}
    for name, layer in layers_to_round(network).items():
        weight = layer.weight.detach()
        kept, loss = judged(layer, weight)
        page_out(weight)
        if kept is None:
            report.left.append(name)
            continue
        report.layers[name] = loss
        found[f"{name}.weight"] = _ToRound(layer, weight)
        found[f"{name}.{SCALE}"] = kept.scale
        found[f"{name}.{MARKER}"] = pack_metadata(marker_of(layer))
    return found


def write_checkpoint(
    target: Path,
    kind: Kind,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    latents: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors with the metadata of their kind and, if given, of their ``LatentSpace``; see ``convert``."""
    _write(target, kind, tensors, dtype, {LATENTS_KEY: dict(latents or {})})


def _write(
    target: Path,
    kind: Kind,
    tensors: Mapping[str, Tensor | _ToRound],
    dtype: torch.dtype | None,
    notes: Mapping[str, Any],
) -> None:
    # The tied embedding would be stored twice; reading fills the second name in.
    tensors = {key: tensor for key, tensor in tensors.items() if key != TIED_COPY}
    plan = {key: _target_dtype(key, tensor, dtype) for key, tensor in tensors.items()}
    tensors = {key: tensors[key] for key in sorted(tensors, key=lambda key: _place(tensors[key], plan[key]))}
    metadata = {"family": kind.family, "stage": kind.stage, "config": kind.config.to_dict() if kind.config else {}}
    metadata.update({key: note for key, note in notes.items() if note})
    with atomic_path(target) as path, path.open("wb") as file:
        _write_header(file, tensors, plan, metadata)
        for key, tensor in tensors.items():
            for part in _slices(tensor.made() if isinstance(tensor, _ToRound) else tensor, plan[key]):
                file.write(part)


def _place(tensor: Tensor | _ToRound, dtype: torch.dtype) -> tuple[bool, int]:
    """Return what sorts tensors: no file has gaps, so odd ones come last, and at multiples of their item sizes."""
    return tensor.shape.numel() * dtype.itemsize % ALIGNMENT != 0, -dtype.itemsize


def _target_dtype(key: str, tensor: Tensor | _ToRound, dtype: torch.dtype | None) -> torch.dtype:
    is_exact = not tensor.dtype.is_floating_point or key == "null_embedding" or key.endswith(f".{SCALE}")
    keeps = dtype is None or is_exact
    wanted = tensor.dtype if keeps else dtype
    if wanted not in _NAMES:
        raise CheckpointError(f"expected tensors of a plain dtype, got {wanted} in '{key}': convert with a dtype")
    return wanted


def _write_header(
    file: BinaryIO,
    tensors: Mapping[str, Tensor | _ToRound],
    plan: Mapping[str, torch.dtype],
    metadata: Mapping[str, Any],
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", METADATA_KEY: json.dumps(metadata)}}
    offset = 0
    for key, tensor in tensors.items():
        size = tensor.shape.numel() * plan[key].itemsize
        header[key] = {"dtype": _NAMES[plan[key]], "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)


def _slices(tensor: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in slices, letting go of the mapped pages behind each."""
    flat = tensor if tensor.is_contiguous() else tensor.contiguous()
    flat = flat.reshape(-1)
    step = max(1, SLICE_BYTES // max(flat.element_size(), dtype.itemsize))
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        yield memoryview(part.to(dtype).contiguous().view(torch.uint8).numpy())
        page_out(part)
