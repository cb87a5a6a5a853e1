"""Any readable weights file to one safetensors file, a slice at a time, so that memory stays small."""

import ctypes
import json
import mmap
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import atomic_path
from .detection import TIED_COPY, Kind, detect
from .loading import check_contents
from .lora import merge_lora, read_lora
from .reading import LATENTS_KEY, METADATA_KEY, read_contents

SLICE_BYTES = 32 * 2**20
# Linux 5.4 and later; Python's mmap module does not name it.
MADV_PAGEOUT = 21

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
          torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL", torch.uint8: "U8"}  # fmt: skip


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    overrides: Mapping[str, Any] | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
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

    Returns:
        What the file is.

    Raises:
        CheckpointError: if the source is not complete weights of FusionFrames, or the target has another suffix.
        OutputError: if the target cannot be written.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise CheckpointError(f"expected a target that ends in .safetensors, got '{target}': change its suffix")
    contents = read_contents(source)
    kind = detect(contents, overrides)
    for path, strength in loras:
        contents = merge_lora(contents, read_lora(path), strength)
    _, network, extras = check_contents(contents, kind)
    write_checkpoint(target, kind, {**network, **extras}, dtype, contents.metadata.get(LATENTS_KEY))
    return kind


def write_checkpoint(
    target: Path,
    kind: Kind,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    latents: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors with the metadata of their kind and, if given, of their ``LatentSpace``; see ``convert``."""
    # The tied embedding would be stored twice; reading fills the second name in.
    tensors = {key: tensor for key, tensor in tensors.items() if key != TIED_COPY}
    plan = {key: _target_dtype(key, tensor, dtype) for key, tensor in tensors.items()}
    # Widest first, as safetensors itself writes, so that every tensor lies at a multiple of its item size.
    tensors = {key: tensors[key] for key in sorted(tensors, key=lambda key: -plan[key].itemsize)}
    metadata = {"family": kind.family, "stage": kind.stage, "config": kind.config.to_dict() if kind.config else {}}
    if latents:
        metadata[LATENTS_KEY] = dict(latents)
    with atomic_path(target) as path, path.open("wb") as file:
        _write_header(file, tensors, plan, metadata)
        for key, tensor in tensors.items():
            for part in _slices(tensor, plan[key]):
                file.write(part)


def _target_dtype(key: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    keeps = dtype is None or not tensor.is_floating_point() or key == "null_embedding"
    wanted = tensor.dtype if keeps else dtype
    if wanted not in _NAMES:
        raise CheckpointError(f"expected tensors of a plain dtype, got {wanted} in '{key}': convert with a dtype")
    return wanted


def _write_header(
    file: BinaryIO, tensors: Mapping[str, Tensor], plan: Mapping[str, torch.dtype], metadata: Mapping[str, Any]
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", METADATA_KEY: json.dumps(metadata)}}
    offset = 0
    for key, tensor in tensors.items():
        size = tensor.numel() * plan[key].itemsize
        header[key] = {"dtype": _NAMES[plan[key]], "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


def _slices(tensor: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in slices, letting go of the mapped pages behind each."""
    flat = tensor if tensor.is_contiguous() else tensor.contiguous()
    flat = flat.reshape(-1)
    step = max(1, SLICE_BYTES // max(flat.element_size(), dtype.itemsize))
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        yield memoryview(part.to(dtype).contiguous().view(torch.uint8).numpy())
        _release(part)


def _release(part: Tensor) -> None:
    """Page a mapped slice out, else a converted file would end up in memory as a whole.

    The advice never changes contents; where the system does not know it the pages stay until memory is short.
    """
    if not sys.platform.startswith("linux"):
        return
    start = -(-part.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = part.data_ptr() + part.numel() * part.element_size() - start
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_PAGEOUT)
