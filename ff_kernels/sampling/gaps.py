"""Keyframes to gaps and back: T keyframes have T - 1 gaps of three frames, which makes 4T - 3 frames."""

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ShapeError

FRAMES_PER_GAP = 3


def split_gaps(keyframes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the frames left and right of every gap.

    Args:
        keyframes: ``[B, T, C, h, w]``, T at least 2.

    Returns:
        Two tensors ``[B * (T - 1), C, h, w]``.

    Raises:
        ShapeError: if there are fewer than two keyframes.
    """
    if keyframes.ndim != 5 or keyframes.shape[1] < 2:
        raise ShapeError(
            f"interpolation expected keyframes [B, T, C, h, w] with T of at least 2, got {list(keyframes.shape)}: "
            "give it two or more keyframes"
        )
    return keyframes[:, :-1].flatten(0, 1), keyframes[:, 1:].flatten(0, 1)


def join_gaps(keyframes: Tensor, gaps: Tensor) -> Tensor:
    """Put three frames between each pair of keyframes; keyframes pass through bit for bit.

    Args:
        keyframes: ``[B, T, C, h, w]``.
        gaps: ``[B * (T - 1), 3C, h, w]``, three frames of C channels in order.

    Returns:
        ``[B, 4T - 3, C, h, w]`` with keyframes at 0, 4, 8, ..

    Raises:
        ShapeError: if the gaps do not fit the keyframes.
    """
    B, T, C, h, w = keyframes.shape
    if gaps.shape != (B * (T - 1), FRAMES_PER_GAP * C, h, w):
        raise ShapeError(
            f"expected gaps {[B * (T - 1), FRAMES_PER_GAP * C, h, w]} for keyframes {list(keyframes.shape)}, got "
            f"{list(gaps.shape)}: pass the gaps made from these keyframes"
        )
    inner = rearrange(gaps.to(keyframes.dtype), "(b g) (f c) h w -> b g f c h w", b=B, c=C)
    groups = torch.cat([keyframes[:, :-1, None], inner], dim=2)  # [B, T - 1, 4, C, h, w]
    return torch.cat([groups.flatten(1, 2), keyframes[:, -1:]], dim=1)


def masked_groups(keyframes: Tensor) -> Tensor:
    """Return what a masked-frame network is shown of every gap: both ends, zeros between them, and the mask.

    Args:
        keyframes: ``[B, T, C, h, w]``, T at least 2.

    Returns:
        ``[B * (T - 1) * 5, C + 1, h, w]``; the last channel is 1 on known frames.

    Raises:
        ShapeError: if there are fewer than two keyframes.
    """
    left, right = split_gaps(keyframes)
    groups = left.new_zeros(len(left), FRAMES_PER_GAP + 2, left.shape[1] + 1, *left.shape[2:])
    groups[:, 0, :-1], groups[:, -1, :-1] = left, right
    groups[:, (0, -1), -1] = 1
    return groups.flatten(0, 1)


def inner_frames(groups: Tensor) -> Tensor:
    """Return the gaps ``[G, 3C, h, w]`` of groups with both ends ``[G * 5, C, h, w]``, for ``join_gaps``."""
    return groups.unflatten(0, (-1, FRAMES_PER_GAP + 2))[:, 1:-1].flatten(1, 2)


def frames_after(keyframes: int, passes: int) -> int:
    """Return the frames that ``passes`` interpolation passes make of ``keyframes``: T to 4T - 3 per pass."""
    for _ in range(passes):
        keyframes = (FRAMES_PER_GAP + 1) * keyframes - FRAMES_PER_GAP
    return keyframes
