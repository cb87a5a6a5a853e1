"""Encoded prompts in a folder, so that a prompt which was read before does not need the text encoder again.

An entry is a safetensors file of some hundred kilobytes, found under a key of all that decides its values: the weights
of encoder and projection, the tokens, and the dtype. A key of another model or dtype never finds it.
"""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints.folder import ModelFiles
from ..checkpoints.loading import load_projection
from ..files import atomic_path

# Of each weights file: bytes of a sample, and how many are taken, evenly spread. Two fine-tunes have the same header.
SAMPLE_BYTES, SAMPLES = 4096, 256
# Entries in the folder at the most; the oldest go first.
MAX_ENTRIES = 500
# 1 had contexts of encoders that a run had rounded to 8 bit under the key of those that it had not.
_FORMAT = "2"


def default_folder() -> Path:
    """Return where prompts are kept unless a run says otherwise: the user's cache folder."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fusionframes" / "prompts"


def fingerprint(paths: Sequence[Path], tensors: Sequence[Tensor]) -> str:
    """Return what tells weights from others: a digest of tensors, and of files' sizes and samples spread over them."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    for path in paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for i in range(SAMPLES):
                file.seek(i * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
                if size <= SAMPLE_BYTES:
                    break
    return digest.hexdigest()


class PromptCache:
    """Contexts of prompts in a folder.

    Args:
        folder: made when the first entry is written; where that fails, which is said once, nothing is kept.
        models: the files whose text encoder and projection make the contexts.
        device: where they are made: devices round differently.
    """

    def __init__(self, folder: Path, models: ModelFiles, device: torch.device) -> None:
        self.folder, self._models, self._device = folder, models, device.type
        self._print: str | None = None
        self._is_refused = False

    def get(
        self, ids: Tensor, mask: Tensor, dtypes: Sequence[torch.dtype], make: Callable[[], tuple[Tensor, Tensor, bool]]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return context and mask of tokens, on the CPU from the folder, or made and then kept there.

        Args:
            ids: ``[B, L]`` token numbers.
            mask: ``[B, L]``.
            dtypes: of the encoder and of the context.
            make: encodes; returns ``[B, L', D]``, ``[B, L']`` and whether nothing went wrong.
        """
        path = self.folder / f"{self._key(ids, mask, dtypes)}.safetensors"
        found = _read(path, len(ids), dtypes[-1])
        if found is None:
            context, mask, is_sound = make()
            if is_sound:
                self._write(path, context, mask)
            return context, mask
        return found

    def _key(self, ids: Tensor, mask: Tensor, dtypes: Sequence[torch.dtype]) -> str:
        if self._print is None:
            stage = "projection" if "projection" in self._models.files else "keyframe"
            projection = load_projection(self._models.require(stage)[0])
            self._print = fingerprint(self._models.paths("text_encoder"), list(projection.parameters()))
        told = [_FORMAT, self._print, self._device, *map(str, dtypes), *map(str, ids.shape)]
        digest = hashlib.sha256(" ".join(told).encode())
        for part in (ids, mask):
            digest.update(part.cpu().long().numpy().tobytes())
        return digest.hexdigest()[:40]

    def _write(self, path: Path, context: Tensor, mask: Tensor) -> None:
        if self._is_refused:
            return
        tensors = {"context": context.cpu().contiguous(), "mask": mask.cpu().contiguous()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                save_file(tensors, temporary)
            entries = sorted(self.folder.glob("*.safetensors"), key=lambda entry: entry.stat().st_mtime)
            for entry in entries[:-MAX_ENTRIES]:
                entry.unlink(missing_ok=True)
        # A cache is a convenience: no reason to end a run.
        except Exception as error:
            self._is_refused = True
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"prompts are not kept in '{self.folder}' ({reason}): name another folder", stacklevel=4)


def _read(path: Path, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Return an entry, or None where there is none or it is damaged and has to be made anew."""
    try:
        with safe_open(path, framework="pt") as file:
            context, mask = file.get_tensor("context"), file.get_tensor("mask")
            # The mapping of a file that is replaced must not reach into a run.
            context, mask = context.clone(), mask.clone()
    except (OSError, SafetensorError, KeyError):
        return None
    fits = context.ndim == 3 and mask.shape == context.shape[:2] and len(context) == rows and context.dtype == dtype
    return (context, mask) if fits and context.isfinite().all() else None
