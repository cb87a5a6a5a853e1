"""Files to flat dictionaries of tensors: ``.pt`` without code execution, safetensors, single or in shards."""

import json
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..models.configs import LatentSpace
from .gguf_file import SUFFIX as GGUF_SUFFIX
from .gguf_file import PackedWeight, formats_of, read_gguf
from .packing import MARKER, set_apart, table_of

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors", GGUF_SUFFIX)
INDEX_SUFFIX = ".index.json"
METADATA_KEY = "fusionframes"
# The tensor in which a text encoder that ComfyUI saved carries its tokenizer, as bytes.
TOKENIZER_KEY = "spiece_model"
# Inside the metadata: the fields of a ``LatentSpace``, whether layers are folded, which were too bad for 8 bit.
LATENTS_KEY, FOLDED_KEY, LEFT_KEY = "latents", "folded", "left_in_16_bit"
_PREFIX = "unet."
# Before the names of a U-Net, a text encoder and an autoencoder in the files that ComfyUI saves.
_CORE_PREFIX = "model.diffusion_model."
CORE_TEXT, CORE_VAE = "cond_stage_model.", "first_stage_model."


# Opens a safetensors file: its tensors and the metadata of its header, by name.
Reader = Callable[[Path], tuple[dict[str, Tensor], Mapping[str, str]]]


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        path: the file, for messages.
        tensors: name to tensor, memory-mapped; nesting is joined by dots, a ``unet`` level is dropped.
        metadata: configuration stored by ``convert``, or empty.
        tokenizer: bytes of a SentencePiece model that lies inside, or None.
        changed: names of tensors that are no longer what the file holds.
        scales: name of every weight that lies in 8 bit to what multiplies it.
        packed: name of every tensor that lies in blocks of a GGUF file, and on the meta device here, to its source.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    tokenizer: bytes | None = None
    changed: frozenset[str] = frozenset()
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    packed: Mapping[str, PackedWeight] = field(default_factory=dict)

    @property
    def is_folded(self) -> bool:
        """Whether the layers are folded, and no longer have the names of the release."""
        return self.metadata.get(FOLDED_KEY) is True

    @property
    def form(self) -> str:
        """What became of the layers, in words; empty for a file as released."""
        forms = ["folded layers"] * self.is_folded + [f"{len(self.scales)} layers in 8 bit"] * bool(self.scales)
        forms += [f"{len(self.packed)} tensors in {formats_of(self.packed)}"] * bool(self.packed)
        return " and ".join(forms)


def require_as_released(contents: Contents, purpose: str) -> None:
    """Refuse a file whose layers are folded or in 8 bit for what needs them as they were.

    Args:
        contents: the opened file.
        purpose: what needs them, as "a LoRA".

    Raises:
        CheckpointError: saying that there is no way back.
    """
    if contents.form:
        raise CheckpointError(
            f"expected layers as released for {purpose}, got {contents.form} in '{contents.path}', which cannot be "
            "turned back: take the file that it was made from"
        )


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Return the tensors of a safetensors file, memory-mapped, and the metadata of its header."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)


def read_contents(path: str | Path, part: str | None = None, reader: Reader = read_safetensors) -> Contents:
    """Open a weights file, an index of shards, or a folder that holds one; nothing is read until it is used.

    Args:
        path: what to open.
        part: ``CORE_TEXT`` or ``CORE_VAE``: what to take of a checkpoint that ComfyUI saved whole; its U-Net if None.
        reader: opens a safetensors file; a host may have one whose tensors it finds again in the file.

    Raises:
        CheckpointError: if the file is missing, damaged, of an unknown format, or a pickle that wants to run code.
    """
    contents = _read(Path(path), part, reader)
    tensors, scales = set_apart(contents.path, contents.tensors)
    return replace(contents, tensors=tensors, scales=scales)


def _read(path: Path, part: str | None, reader: Reader) -> Contents:
    # Unlike Path.exists this is False, not an error, for a name that no file can have.
    if not os.path.exists(path):
        raise CheckpointError(f"expected a weights file at '{path}', found nothing there: check the path")
    if path.is_dir():
        path = _index_in(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _read_index(path, reader)
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(
            f"expected weights that end in {', '.join(SUFFIXES)} or {INDEX_SUFFIX}, got '{path}': name a weights file"
        )
    _refuse_impostors(path)
    try:
        if path.suffix.lower() == ".safetensors":
            return _named_contents(path, part, *reader(path))
        if path.suffix.lower() == GGUF_SUFFIX:
            tensors, packed = read_gguf(path)
            return Contents(path, tensors, {}, packed=packed)
        return Contents(path, _flatten(path, _unpickle(path)), {})
    except CheckpointError:
        raise
    # A damaged pickle can make its reader raise anything, struct.error and AssertionError included.
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return CheckpointError(
        f"expected complete weights in '{path}' ({path.stat().st_size:,} bytes), got a file that cannot be read "
        f"({reason[0][:160]}): download it again"
    )


def _refuse_impostors(path: Path) -> None:
    """Name the files that downloads leave in the place of weights."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise _damaged(path, error) from error
    text = head.lstrip().lower()
    if not head:
        raise CheckpointError(f"expected weights in '{path}', got an empty file: download it again")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"expected weights in '{path}', got a Git LFS pointer of {path.stat().st_size} bytes: fetch the real file "
            "with 'git lfs pull' or download it from the repository's file page"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"expected weights in '{path}', got a web page: download the file itself, signed in if the site asks for it"
        )


def _unpickle(path: Path) -> Any:
    try:
        try:
            return _torch_load(path, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
        # The format before PyTorch 1.6 cannot be mapped.
        return _torch_load(path, mmap=False)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"expected plain tensors in '{path}', got a pickle that wants to run code or is damaged, which is never "
            "loaded: take the file from the authors' repository, or a safetensors version"
        ) from error


def _torch_load(path: Path, mmap: bool) -> Any:
    with warnings.catch_warnings():
        # PyTorch remarks on pickles it then refuses; the error says it.
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _flatten(path: Path, content: Any, prefix: str = "") -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"expected a dictionary of tensors in '{path}', got {type(content).__name__}: take a checkpoint of "
            "FusionFrames"
        )
    flat: dict[str, Tensor] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_quantized or value.is_meta:
                raise CheckpointError(
                    f"expected plain tensors in '{path}', got a sparse, quantized or empty one in '{name}': take a "
                    "checkpoint of FusionFrames"
                )
            flat[name] = value.detach()
        elif isinstance(value, Mapping):
            flat.update(_flatten(path, value, "" if name in ("unet", "state_dict") else f"{name}."))
    return flat


def _named_contents(path: Path, part: str | None, tensors: dict[str, Tensor], header: Mapping[str, str]) -> Contents:
    try:
        for layer, marker in table_of(header).items():
            tensors[f"{layer}.{MARKER}"] = pack_metadata(marker)
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, error) from error
    if part is not None and any(key.startswith(part) for key in tensors):
        tensors = {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}
    packed, tokenizer = tensors.pop(METADATA_KEY, None), tensors.pop(TOKENIZER_KEY, None)
    try:
        stored = header.get(METADATA_KEY, "{}") if packed is None else bytes(packed.flatten().tolist())
        metadata = json.loads(stored)
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    content = None if tokenizer is None else tokenizer.contiguous().numpy().tobytes()
    return Contents(path, plainly_named(tensors), metadata if isinstance(metadata, dict) else {}, content)


def plainly_named(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return what a safetensors file holds by name, without what others put before the names of a network."""
    if f"{_CORE_PREFIX}in_layer.weight" in tensors:
        # Beside the U-Net such a file may hold an autoencoder and text encoders, in names that are core's own.
        kept = ("null_embedding", "projection", _CORE_PREFIX)
        tensors = {k.removeprefix(_CORE_PREFIX): v for k, v in tensors.items() if k.startswith(kept)}
    if all(k.startswith(_PREFIX) or k.startswith(("null_embedding", "projection")) for k in tensors):
        tensors = {k.removeprefix(_PREFIX): v for k, v in tensors.items()}
    return tensors


def pack_metadata(metadata: Mapping[str, Any]) -> Tensor:
    """Return metadata as bytes ``[N]``, for a writer that takes tensors only: read where they are ``METADATA_KEY``."""
    return pack_bytes(json.dumps(metadata).encode())


def pack_bytes(content: bytes) -> Tensor:
    """Return bytes as a tensor ``[N]``."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _index_in(folder: Path) -> Path:
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    # A repository may hold the same weights twice; safetensors shards are the safer copy.
    indices.sort(key=lambda p: "safetensors" not in p.name)
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    singles = [p for p in files if p.suffix.lower() == ".safetensors"] or files
    found = indices or (singles if len(singles) == 1 else [])
    if not found:
        raise CheckpointError(
            f"expected one weights file or an index of shards in the folder '{folder}', got {len(singles)} weights "
            "files and no index: name the file"
        )
    return found[0]


def shard_names(path: Path) -> dict[str, str]:
    """Return tensor name to shard of an index; a shard lies beside its index, so folders in its name are dropped.

    Raises:
        CheckpointError: if the index is damaged.
    """
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {key: Path(name).name for key, name in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"expected an index of shards in '{path}', got one without a weight map: download it again"
        ) from error


def whole_of(path: Path) -> Path:
    """Return the index that lists ``path`` as one of its shards, or ``path`` itself if it stands alone."""
    for index in sorted(path.parent.glob(f"*{INDEX_SUFFIX}")):
        # A damaged index of another model in the same folder is no reason to refuse this file.
        with suppress(CheckpointError):
            if path.name in shard_names(index).values():
                return index
    return path


def latent_space(contents: Contents) -> LatentSpace:
    """Return the latent space stored in a file, or that of the releases.

    Raises:
        CheckpointError: if what is stored is no latent space.
    """
    stored = contents.metadata.get(LATENTS_KEY, {})
    try:
        space = LatentSpace.from_dict(stored)
        rows = space.rgb_factors
        fits = space.factor in (1, 2, 4, 8, 16, 32) and (rows is None or all(len(row) == 3 for row in rows))
    except (AttributeError, TypeError) as error:
        raise _damaged(contents.path, error) from error
    if not fits:
        raise _damaged(contents.path, ValueError(f"latent space {stored}"))
    return space


def _read_index(path: Path, reader: Reader) -> Contents:
    weight_map = shard_names(path)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).suffix.lower() not in SUFFIXES:
            raise CheckpointError(f"expected weights files in the index '{path}', got '{name}': download it again")
        tensors.update(_read(path.parent / name, None, reader).tensors)
    absent = sorted(key for key in weight_map if key not in tensors and key.removeprefix(_PREFIX) not in tensors)
    if absent:
        raise CheckpointError(
            f"expected {len(weight_map)} tensors in the shards of '{path}', got {len(absent)} fewer, '{absent[0]}' "
            "among them: download the shards again"
        )
    return Contents(path, tensors, {})
