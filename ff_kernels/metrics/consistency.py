"""How steady a clip is over time: warping error, distance of neighbouring frames, flicker.

All are 0 for a still clip and need no reference. A clip of real motion has a neighbour error and, at each uncovered
edge, a warping error as well, so compare them with those of a true clip of the same motion, not with zero.
"""

import torch
from torch import Tensor

from ..errors import ShapeError
from .fidelity import check_clip
from .flow import block_flow, brightness, warp
from .lpips import Distance

WARPING, NEIGHBOUR, NEIGHBOUR_LPIPS = "warping error", "neighbour MSE", "neighbour LPIPS"
BRIGHTNESS_FLICKER, PIXEL_FLICKER = "brightness flicker", "pixel flicker"
# Frame of the first value of every curve: the later one of a pair, the middle one of three.
FIRST_FRAME = 1


def neighbour_mse(frames: Tensor) -> Tensor:
    """Mean squared difference of each frame and the one before, 0..1.

    Args:
        frames: ``[T, 3, H, W]`` in 0..1, T 2 or more.

    Returns:
        ``[T-1]``.

    Raises:
        ShapeError: if the shape is another or there are fewer than two frames.
        InputError: if a pixel is outside 0..1.
    """
    frames = check_clip(frames, least=2)
    return (frames[1:] - frames[:-1]).square().flatten(1).mean(1)


def warping_error(frames: Tensor) -> Tensor:
    """Mean squared difference, 0..1, of each frame and the one before moved along the motion of ``flow.block_flow``.

    Uncovered background counts: there is no mask of occlusions. As the motion is fitted to the very frames that are
    compared, noise comes out below its neighbour error, though not near zero.

    Arguments, errors and result as in ``neighbour_mse``.

    Source: Lai et al. 2018, temporal warping error, with block matching in place of a flow network.
    """
    frames = check_clip(frames, least=2)
    return (frames[1:] - warp(frames[:-1], block_flow(frames))).square().flatten(1).mean(1)


def neighbour_lpips(frames: Tensor, distance: Distance) -> Tensor:
    """LPIPS of each frame and the one before, 0 or more; ``distance`` from ``lpips.load_lpips``.

    Arguments, errors and result as in ``neighbour_mse``.
    """
    frames = check_clip(frames, least=2)
    return distance(frames[:-1], frames[1:]).to(frames.device)


def brightness_flicker(frames: Tensor) -> Tensor:
    """Absolute second difference over time of the frames' mean brightness, 0..2: 0 for steady and evenly fading light.

    Args:
        frames: ``[T, 3, H, W]`` in 0..1, T 3 or more.

    Returns:
        ``[T-2]``.

    Raises:
        ShapeError: if the shape is another or there are fewer than three frames.
        InputError: if a pixel is outside 0..1.
    """
    frames = check_clip(frames, least=3)
    return brightness(frames).flatten(1).mean(1).diff(n=2).abs()


def pixel_flicker(frames: Tensor) -> Tensor:
    """Mean over pixels of the absolute second difference of brightness over time, 0..2.

    Arguments, errors and result as in ``brightness_flicker``.
    """
    frames = check_clip(frames, least=3)
    return brightness(frames).diff(n=2, dim=0).abs().flatten(1).mean(1)


class TemporalConsistency:
    """The curves of one clip that arrives in chunks; only its last two frames are kept.

    Args:
        distance: LPIPS for the neighbour LPIPS, None to leave it out.
    """

    def __init__(self, distance: Distance | None = None) -> None:
        self.distance = distance
        self._last: Tensor | None = None
        self._curves: dict[str, list[Tensor]] = {WARPING: [], NEIGHBOUR: []}
        self._curves |= {} if distance is None else {NEIGHBOUR_LPIPS: []}
        self._curves |= {BRIGHTNESS_FLICKER: [], PIXEL_FLICKER: []}

    def add(self, frames: Tensor) -> "TemporalConsistency":
        """Take in the next frames ``[N, 3, H, W]`` in 0..1 and return self.

        Raises:
            ShapeError: if the shape is another or the size changes.
            InputError: if a pixel is outside 0..1.
        """
        frames = check_clip(frames)
        last = frames[:0] if self._last is None else self._last
        if len(last) and last.shape[1:] != frames.shape[1:]:
            raise ShapeError(
                f"expected frames of {list(last.shape[1:])}, got {list(frames.shape[1:])}: give frames of one size"
            )
        pairs, triples = torch.cat([last[-1:], frames]), torch.cat([last, frames])
        if len(pairs) > 1:
            self._curves[WARPING].append(warping_error(pairs))
            self._curves[NEIGHBOUR].append(neighbour_mse(pairs))
            if self.distance is not None:
                self._curves[NEIGHBOUR_LPIPS].append(neighbour_lpips(pairs, self.distance))
        if len(triples) > 2:
            self._curves[BRIGHTNESS_FLICKER].append(brightness_flicker(triples))
            self._curves[PIXEL_FLICKER].append(pixel_flicker(triples))
        self._last = triples[-2:]
        return self

    def curves(self) -> dict[str, Tensor]:
        """Return names to ``[T-1]`` (errors of neighbours) or ``[T-2]`` (flicker).

        Raises:
            ShapeError: if fewer than three frames were taken in.
        """
        if not self._curves[PIXEL_FLICKER]:
            count = 0 if self._last is None else len(self._last)
            raise ShapeError(f"expected 3 or more frames for temporal consistency, got {count}: give a longer clip")
        return {name: torch.cat(parts) for name, parts in self._curves.items()}


def temporal_curves(frames: Tensor, distance: Distance | None = None) -> dict[str, Tensor]:
    """Return every measure of this module for a clip ``[T, 3, H, W]`` in 0..1, T 3 or more; see ``curves``."""
    return TemporalConsistency(distance).add(frames).curves()
