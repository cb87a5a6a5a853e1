"""Motion between neighbouring frames by block matching: whole pixels, full search, no trained network.

Each block of 8 x 8 pixels takes the displacement of up to 8 pixels, in x and in y, at which the brightness of the
earlier frame differs least in the mean square; of equal ones the shortest. Frames continue beyond their border as
their border pixels. Motion that is faster, turns, scales or falls between pixels leaves an error.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, ShapeError
from .fidelity import check_clip

BLOCK_PX = 8
RADIUS_PX = 8
# Rec. 709.
_LUMA = (0.2126, 0.7152, 0.0722)


def brightness(frames: Tensor) -> Tensor:
    """Return the Rec. 709 luma ``[..., H, W]`` in 0..1 of frames ``[..., 3, H, W]`` in 0..1."""
    return torch.einsum("...chw,c->...hw", frames, frames.new_tensor(_LUMA))


def block_flow(frames: Tensor, *, block_px: int = BLOCK_PX, radius_px: int = RADIUS_PX) -> Tensor:
    """Where the content of each frame was in the frame before.

    Args:
        frames: ``[T, 3, H, W]`` in 0..1, T 2 or more.
        block_px: side of a block, 1 or more; blocks at the right and lower border may be smaller.
        radius_px: largest displacement in x and in y, 0 or more.

    Returns:
        ``[T-1, 2, H, W]`` int64: x and y displacement in pixels, constant in a block; pixel (x, y) of frame t + 1
        is best explained by pixel (x + dx, y + dy) of frame t.

    Raises:
        ShapeError: if the shape is another or there are fewer than two frames.
        InputError: if pixels, ``block_px`` or ``radius_px`` are out of range.
    """
    frames = check_clip(frames, least=2)
    if block_px < 1 or radius_px < 0:
        raise InputError(
            f"expected blocks of 1 or more pixels and a radius of 0 or more, got {block_px} and {radius_px}"
            ": change them"
        )
    luma, steps = brightness(frames), range(-radius_px, radius_px + 1)
    # Shortest first, so that a flat block, which fits everywhere, stays where it is.
    candidates = sorted(
        ((dx, dy) for dx in steps for dy in steps), key=lambda step: (step[0] ** 2 + step[1] ** 2, step)
    )
    before = F.pad(luma[:-1, None], [radius_px] * 4, mode="replicate")[:, 0]
    # One frame at a time stays in a processor's cache: 0.15 s a pair of 512 x 512 pixels, 0.43 s with eight at once.
    chosen = torch.stack([_best(b, a, candidates, block_px, radius_px) for b, a in zip(before, luma[1:], strict=True)])
    flow = torch.tensor(candidates, device=frames.device)[chosen]  # [T-1, h, w, 2]
    H, W = luma.shape[-2:]
    flow = flow.repeat_interleave(block_px, 1)[:, :H].repeat_interleave(block_px, 2)[:, :, :W]
    return flow.permute(0, 3, 1, 2)


def _best(before: Tensor, now: Tensor, candidates: list[tuple[int, int]], block_px: int, radius_px: int) -> Tensor:
    """Return the index of the best candidate of every block ``[h, w]``, the first of equal ones.

    Args:
        before: ``[H + 2 radius_px, W + 2 radius_px]`` brightness of the earlier frame with its border.
        now: ``[H, W]`` brightness of the later one.
        candidates: displacements in x and y.
        block_px: side of a block.
        radius_px: width of the border.
    """
    H, W = now.shape
    h, w = -(-H // block_px), -(-W // block_px)
    # Blocks at the right and lower border that hang over are filled up with zero error.
    squares = now.new_zeros(h * block_px, w * block_px)
    error = squares[:H, :W]
    best = now.new_full((h, w), torch.inf)
    chosen = torch.zeros(h, w, dtype=torch.int64, device=now.device)
    for index, (dx, dy) in enumerate(candidates):
        top, left = radius_px + dy, radius_px + dx
        torch.sub(now, before[top : top + H, left : left + W], out=error).square_()
        cost = squares.view(h, block_px, w * block_px).sum(1).view(h, w, block_px).sum(2)
        chosen = torch.where(cost < best, index, chosen)
        best = torch.minimum(cost, best)
    return chosen


def warp(frames: Tensor, flow: Tensor) -> Tensor:
    """Return frames with the pixel at (x + dx, y + dy) moved to (x, y); beyond the border, the border's pixel.

    Args:
        frames: ``[N, C, H, W]``.
        flow: ``[N, 2, H, W]`` whole pixels, x then y.

    Raises:
        ShapeError: if the shapes do not fit.
    """
    N, C, H, W = frames.shape
    if flow.shape != (N, 2, H, W):
        raise ShapeError(f"expected a flow of {[N, 2, H, W]} for the frames, got {list(flow.shape)}: match their sizes")
    x = (torch.arange(W, device=frames.device) + flow[:, 0]).clamp(0, W - 1)
    y = (torch.arange(H, device=frames.device)[:, None] + flow[:, 1]).clamp(0, H - 1)
    position = (y * W + x).reshape(N, 1, H * W).expand(N, C, H * W)
    return frames.flatten(2).gather(2, position).reshape(N, C, H, W)
