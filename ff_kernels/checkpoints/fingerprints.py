"""What a weights file is, told by its content at the cost of a few pages per tensor.

A whole sha256 of a released model reads 35 GB, which every shard of an array of jobs would do anew over the network.
Training, merging, casting or quantising a network touches tensors as wholes, so a piece from the start, the middle and
the end of every tensor tells two such files apart; a change of a few numbers between the pieces is not seen. The name
of a file and its times are not read: a copy is the same model.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from .reading import Contents

PIECE_BYTES = 512
DIGITS = 16


def weights_fingerprint(contents: Contents) -> str:
    """Return 16 hex digits over names, dtypes, shapes, metadata and three pieces of every tensor."""
    digest = hashlib.sha256(repr(sorted(contents.metadata.items())).encode())
    scales = {f"{name} scale": scale for name, scale in contents.scales.items()}
    raw = {name: weight.raw for name, weight in contents.packed.items()}
    for name, tensor in sorted({**contents.tensors, **scales, **raw}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for piece in _pieces(tensor):
            digest.update(piece)
    return digest.hexdigest()[:DIGITS]


def file_digest(path: Path) -> str:
    """Return the sha256 of a whole file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pieces(tensor: Tensor) -> list[bytes]:
    flat = tensor.detach().reshape(-1)
    size = max(1, PIECE_BYTES // tensor.element_size())
    starts = {0, max(0, flat.numel() // 2 - size // 2), max(0, flat.numel() - size)}
    pieces = [flat[start : start + size].contiguous() for start in sorted(starts)]
    return [piece.view(torch.uint8).numpy().tobytes() for piece in pieces if piece.numel()]
