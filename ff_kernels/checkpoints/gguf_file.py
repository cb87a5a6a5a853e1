"""Text encoders in GGUF, named as by llama.cpp or Hugging Face (checkpoints/README.md, "Text encoders in GGUF")."""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..errors import CheckpointError

SUFFIX = ".gguf"
# llama.cpp's names; those of Hugging Face are ours.
_TOP = {
    "token_embd": "shared",
    "enc.output_norm": "encoder.final_layer_norm",
}
_INNER = {
    **{f"attn_{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"},
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
_BLOCK = re.compile(r"enc\.blk\.(\d+)\.(\w+)")
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class PackedWeight:
    """A weight in blocks of few bits, a source as ``runtime.streaming.Source``; it lies in the pages of its file.

    Attributes:
        raw: its bytes, ``uint8``.
        format: name of the blocks' layout, as "Q8_0".
        shape: of the weight.
        dtype: that it is widened to first.
    """

    raw: Tensor
    format: str
    shape: torch.Size
    dtype: torch.dtype = torch.float32

    def write_into(self, out: Tensor) -> None:
        """Widen the values into ``out``, which has the shape and may have another dtype and device."""
        gguf = _package()
        values = gguf.quants.dequantize(self.raw.numpy(), gguf.GGMLQuantizationType[self.format])
        out.copy_(torch.from_numpy(values).reshape(self.shape))

    def wide(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in memory of its own."""
        out = torch.empty(self.shape, dtype=dtype)
        self.write_into(out)
        return out


def _package() -> ModuleType:
    return importlib.import_module("gguf")


def read_gguf(path: Path) -> tuple[dict[str, Tensor], dict[str, PackedWeight]]:
    """Open a file.

    Returns:
        Name to tensor, mapped, those in blocks without data on the meta device; and name to what those come from.

    Raises:
        CheckpointError: if the package that reads such files is not installed, or holds a layout it does not know.
    """
    try:
        reader = _package().GGUFReader(path)
    except ImportError as error:
        raise CheckpointError(
            f"expected the package gguf to read '{path}', found none: install fusionframes[gguf], or take safetensors"
        ) from error
    # A private mapping of its own: the reader's arrays are read-only, which torch warns of.
    whole = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    tensors, packed = {}, {}
    for stored in reader.tensors:
        name, layout = _ours(stored.name), stored.tensor_type.name
        # Sizes stand innermost first.
        shape = torch.Size(int(size) for size in reversed(stored.shape))
        start = int(stored.data_offset)
        data = whole[start : start + int(stored.n_bytes)]
        if layout in _PLAIN:
            tensors[name] = data.view(_PLAIN[layout]).reshape(shape)
            continue
        rows = data.reshape(*shape[:-1], -1)
        packed[name] = PackedWeight(rows, layout, shape)
        tensors[name] = torch.empty(shape, dtype=torch.float32, device="meta")
    if not tensors:
        raise CheckpointError(f"expected a text encoder in '{path}', got a GGUF without tensors: download it again")
    return tensors, packed


def _ours(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    match = _BLOCK.fullmatch(stem)
    if match and match[2] in _INNER:
        return f"encoder.block.{match[1]}.{_INNER[match[2]]}{dot}{ending}"
    if stem in _TOP:
        return f"{_TOP[stem]}{dot}{ending}"
    # The other half of the model, by the prefix under which split_tensors drops it.
    return f"decoder.block.{name}" if stem.startswith("dec.") else "lm_head.weight" if stem == "output" else name


def formats_of(packed: Mapping[str, PackedWeight]) -> str:
    """Return the layouts of weights, the most frequent first."""
    names = [weight.format for weight in packed.values()]
    return ", ".join(sorted(set(names), key=lambda name: (-names.count(name), name)))
