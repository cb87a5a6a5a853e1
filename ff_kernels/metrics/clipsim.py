"""CLIPSIM: how well the frames of a clip fit its prompt, by the user's own CLIP."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, ShapeError
from .fidelity import check_clip


def clip_similarity(frames: Tensor, prompt: Tensor) -> Tensor:
    """Cosine of each frame's embedding and the prompt's, -1..1; its mean is CLIPSIM.

    Args:
        frames: ``[T, D]`` embeddings of the frames, of any length.
        prompt: ``[D]`` or ``[1, D]`` embedding of the prompt.

    Returns:
        ``[T]`` float32 or float64.

    Raises:
        ShapeError: if the shapes are wrong or the widths differ.
        InputError: if an embedding is zero, NaN or infinite.

    Source: the paper's CLIPSIM on MSR-VTT; the paper does not name its CLIP model.
    """
    row = prompt[None] if prompt.ndim == 1 else prompt
    if frames.ndim != 2 or not len(frames) or row.shape != (1, frames.shape[1]):
        raise ShapeError(
            f"expected embeddings [T, D] of frames and [D] of the prompt, got {list(frames.shape)} and "
            f"{list(prompt.shape)}: take both from one CLIP, after its projections"
        )
    dtype = torch.promote_types(torch.promote_types(frames.dtype, row.dtype), torch.float32)
    frames, row = frames.to(dtype), row.to(frames.device, dtype)
    for name, rows in (("frame", frames), ("prompt", row)):
        lengths = rows.norm(dim=1)
        if not (torch.isfinite(lengths) & (lengths > 0)).all():
            raise InputError(f"expected finite {name} embeddings other than zero, got one that is not: encode it again")
    return (F.normalize(frames, dim=1, eps=0) @ F.normalize(row, dim=1, eps=0)[0]).clamp(-1, 1)


def clipsim(
    frames: Tensor, prompt: str, encode_frames: Callable[[Tensor], Tensor], encode_prompt: Callable[[str], Tensor], *,
    batch: int = 16, progress: Callable[[int, int], None] | None = None,
) -> Tensor:  # fmt: skip
    """Cosine of each frame and the prompt, -1..1, encoded batch by batch.

    Args:
        frames: ``[T, 3, H, W]`` in 0..1.
        prompt: what the clip should show.
        encode_frames: pictures ``[N, 3, H, W]`` in 0..1 to ``[N, D]``, with the resizing that its CLIP needs.
        encode_prompt: text to ``[D]`` or ``[1, D]``.
        batch: frames per call, 1 or more.
        progress: told after each call: frames done, frames in all.

    Returns:
        ``[T]``.

    Raises:
        ShapeError: if frames or embeddings have other shapes.
        InputError: if the prompt is empty, or pixels or embeddings are out of range.
    """
    if not prompt.strip():
        raise InputError("expected a prompt for CLIPSIM, got an empty text: describe what the clip should show")
    frames = check_clip(frames)
    embedding, rows = encode_prompt(prompt), []
    for start in range(0, len(frames), batch):
        rows.append(encode_frames(frames[start : start + batch]))
        if progress is not None:
            progress(min(start + batch, len(frames)), len(frames))
    embeddings = torch.cat(rows)
    if len(embeddings) != len(frames):
        raise ShapeError(
            f"expected {len(frames)} frame embeddings, got {list(embeddings.shape)}: return one row per frame"
        )
    return clip_similarity(embeddings, embedding)
