"""How close the frames of a clip are to those of a reference: MSE, PSNR and SSIM, one value per frame.

T frames, H and W sides in pixels; pixels are RGB in 0..1.
"""

import torch
from torch import Tensor

from ..errors import InputError, ShapeError

# Gaussian window of the SSIM definition: 11 taps, sigma 1.5 pixels.
SSIM_WINDOW_PX = 11


def check_clip(frames: Tensor, name: str = "clip", *, least: int = 1) -> Tensor:
    """Return ``frames`` as at least float32, checked.

    Args:
        frames: ``[T, 3, H, W]``, RGB in 0..1, floating point.
        name: what to call the clip in an error.
        least: fewest frames allowed.

    Raises:
        ShapeError: if the shape is another, or there are fewer frames.
        InputError: if the dtype is not floating point, or a pixel is NaN, infinite or outside 0..1.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.numel() == 0:
        raise ShapeError(f"expected the {name} as [T, 3, H, W] with pixels, got {list(frames.shape)}: reshape it")
    if len(frames) < least:
        raise ShapeError(f"expected {least} or more frames in the {name}, got {len(frames)}: give a longer clip")
    if not frames.is_floating_point():
        raise InputError(f"expected a floating point {name} in 0..1, got {frames.dtype}: divide bytes by 255")
    low, high = frames.aminmax()
    # Written so that NaN, which fails every comparison, is refused as well.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise InputError(
            f"expected pixels of the {name} in 0..1, got {low.item():.4g}..{high.item():.4g}: rescale or clamp them"
        )
    return frames if frames.dtype == torch.float64 else frames.float()


def check_pair(reference: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return both clips checked by ``check_clip``, of one shape and dtype.

    Raises:
        ShapeError: if a shape is wrong or the shapes differ.
        InputError: if a clip has another type or range of pixels.
    """
    reference, frames = check_clip(reference, "reference"), check_clip(frames)
    if reference.shape != frames.shape:
        raise ShapeError(
            f"expected a clip of the reference's shape {list(reference.shape)}, got {list(frames.shape)}: "
            "give both the same number of frames and size"
        )
    dtype = torch.promote_types(reference.dtype, frames.dtype)
    return reference.to(dtype), frames.to(dtype)


def mse(reference: Tensor, frames: Tensor) -> Tensor:
    """Mean squared error of each frame over pixels and channels, 0..1.

    Args:
        reference: ``[T, 3, H, W]`` in 0..1.
        frames: ``[T, 3, H, W]`` in 0..1.

    Returns:
        ``[T]``, float32 or float64.

    Raises:
        ShapeError: if a shape is wrong or the shapes differ.
        InputError: if a clip has another type or range of pixels.

    Source: columns of the paper's table 3.
    """
    reference, frames = check_pair(reference, frames)
    return (reference - frames).square().flatten(1).mean(1)


def psnr(reference: Tensor, frames: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame in dB; infinite for a frame equal to its reference.

    A mean over frames must say what it does with infinite values: ``tables.finite_mean`` leaves them out and
    counts them.

    Arguments, errors and source as in ``mse``.

    Returns:
        ``[T]`` in dB.
    """
    from kornia.metrics import psnr as kornia_psnr

    reference, frames = check_pair(reference, frames)
    values = [
        frames.new_tensor(torch.inf) if torch.equal(a, b) else kornia_psnr(b, a, 1.0)
        for a, b in zip(reference, frames, strict=True)
    ]
    return torch.stack(values)


def ssim(reference: Tensor, frames: Tensor) -> Tensor:
    """Structural similarity of each frame, -1..1, 1 for equal frames.

    Gaussian window of 11 pixels, mean over the positions where the window fits, over RGB channels.

    Arguments and source as in ``mse``.

    Returns:
        ``[T]``.

    Raises:
        ShapeError: if a shape is wrong, the shapes differ or a side is below 11 pixels.
        InputError: if a clip has another type or range of pixels.
    """
    from kornia.metrics import ssim as kornia_ssim

    reference, frames = check_pair(reference, frames)
    if min(frames.shape[-2:]) < SSIM_WINDOW_PX:
        raise ShapeError(
            f"expected sides of {SSIM_WINDOW_PX} or more pixels for SSIM, got {frames.shape[-1]} x {frames.shape[-2]}: "
            "give larger frames"
        )
    # kornia adds eps to a denominator that is never zero, which would keep equal black frames below 1.
    similarity = kornia_ssim(frames, reference, SSIM_WINDOW_PX, max_val=1.0, eps=0.0, padding="valid")
    return similarity.flatten(1).mean(1)


def fidelity_curves(reference: Tensor, frames: Tensor) -> dict[str, Tensor]:
    """Return PSNR, SSIM and MSE of every frame: names to ``[T]``; arguments and errors as in ``ssim``."""
    return {"PSNR": psnr(reference, frames), "SSIM": ssim(reference, frames), "MSE": mse(reference, frames)}
