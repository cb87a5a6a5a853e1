"""Reads the attributes of a scene back from its frames with plain computer vision, to grade generated clips.

Colours are judged against what the frames themselves show, so that a slightly dimmed or blurred clip keeps
its attributes. Frames are ``[F, 3, 64, 64]``, RGB in 0..1; coordinates follow ``scenes``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import ShapeError
from .scenes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    SHAPES,
    SIZE_RADIUS_PX,
    Scene,
    frame_times,
    half_extents,
    shape_area,
    shape_coverage,
)

_BORDER_PX = 2
# Closer than this, object and background cannot be told apart and every mask is empty.
_MIN_CONTRAST = 0.1
_MIN_AREA_PX = 6
# Coverage below this is noise: it would add up over the 4096 pixels of a frame.
_COVERAGE_FLOOR = 0.2
_CORE_SHARE = 0.8
_SHAPE_FRAMES = 3
_RADIUS_FACTORS = (0.93, 1.0, 1.07)
_OFFSETS_PX = (-0.6, 0.0, 0.6)

# Full-strength motions of true clips; a clip shows the motion that it performs to the largest share.
_TYPICAL_TRAVEL_PX = 28.0
_TYPICAL_BOUNCE_PX = 20.0
_TYPICAL_LOG_AREA_RATIO = 1.7
_MIN_MOTION_SHARE = 0.33


@dataclass(frozen=True)
class Measurement:
    """What a clip shows and the numbers behind that verdict.

    Attributes:
        scene: best guess for every attribute.
        background_rgb: median colour of the border, 0..1.
        color_rgb: median colour of the object's core, 0..1.
        visible_frames: share of frames in which an object was found, 0..1.
        radius_px: fitted radius at mid clip, pixels.
        shape_iou: intersection over union with the best template, mean over frames, 0..1.
        travel_x_px: distance moved to the right over the clip, pixels.
        travel_y_px: distance moved down over the clip, pixels.
        bounce_px: height of the bounce, pixels.
        area_ratio: area at the end over area at the start.
    """

    scene: Scene
    background_rgb: tuple[float, ...]
    color_rgb: tuple[float, ...]
    visible_frames: float
    radius_px: float
    shape_iou: float
    travel_x_px: float
    travel_y_px: float
    bounce_px: float
    area_ratio: float


def measure_scene(frames: Tensor) -> Scene:
    """Best guess at the scene that a clip shows.

    Args:
        frames: ``[F, 3, 64, 64]``, RGB in 0..1, evenly spaced over the clip; finite.

    Raises:
        ShapeError: if ``frames`` has another shape.
    """
    return measure_clip(frames).scene


def measure_clip(frames: Tensor) -> Measurement:
    """Best guess at the scene that a clip shows, with the measured quantities.

    A clip without a visible object gets a guess too (a small circle that stays); ``visible_frames`` tells.

    Args:
        frames: ``[F, 3, 64, 64]``, RGB in 0..1, evenly spaced over the clip; finite.

    Raises:
        ShapeError: if ``frames`` has another shape.
    """
    if frames.ndim != 4 or not frames.shape[0] or frames.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ShapeError(f"expected frames [F, 3, {IMAGE_SIZE}, {IMAGE_SIZE}], got {list(frames.shape)}")
    pixels = frames.detach().float().cpu().clamp(0.0, 1.0).permute(0, 2, 3, 1)  # [F, 64, 64, 3]
    background_rgb = _border_color(pixels)
    color_rgb = _object_color(pixels, background_rgb)
    coverage = _object_coverage(pixels, background_rgb, color_rgb)  # [F, 64, 64]
    areas, centroids = _moments(coverage)
    is_visible = areas >= _MIN_AREA_PX
    shape, iou = _fit_shape(coverage[is_visible], areas[is_visible], centroids[is_visible])
    # Sizes change evenly over a clip, so that the median is the size at mid clip.
    area = areas[is_visible].median().item() if is_visible.any() else 0.0
    radius = math.sqrt(area / shape_area(shape, 1.0))
    motion = _track_motion(areas, centroids, is_visible)
    return Measurement(
        scene=Scene(
            size="large" if radius > sum(SIZE_RADIUS_PX.values()) / 2 else "small",
            color=_nearest(color_rgb, COLORS),
            shape=shape,
            motion=_name_motion(motion),
            background=_nearest(background_rgb, BACKGROUNDS),
        ),
        background_rgb=tuple(background_rgb.tolist()),
        color_rgb=tuple(color_rgb.tolist()),
        visible_frames=is_visible.float().mean().item(),
        radius_px=radius,
        shape_iou=iou,
        travel_x_px=motion.travel_x_px,
        travel_y_px=motion.travel_y_px,
        bounce_px=motion.bounce_px,
        area_ratio=math.exp(motion.log_area_ratio),
    )


@dataclass(frozen=True)
class Agreement:
    """How close a clip comes to the scene that was asked for.

    Attributes:
        right: whether each attribute is read back as asked, and "all".
        shape_iou: overlap with the shape that was asked for, mean over frames, 0..1.
        color_rmse: of the object's and the background's colour from those asked for, 0..255.
        centre_px: x and y of the object, mean over frames; None where none was found.
    """

    right: dict[str, bool]
    shape_iou: float
    color_rmse: float
    centre_px: tuple[float, float] | None


def compare_clip(frames: Tensor, expected: Scene) -> Agreement:
    """Grade a clip against the scene it was asked to show; arguments and errors as in ``measure_clip``."""
    found = measure_clip(frames)
    pixels = frames.detach().float().cpu().clamp(0.0, 1.0).permute(0, 2, 3, 1)  # [F, 64, 64, 3]
    seen = torch.tensor([found.color_rgb, found.background_rgb])
    coverage = _object_coverage(pixels, seen[1], seen[0])
    areas, centroids = _moments(coverage)
    is_visible = areas >= _MIN_AREA_PX
    asked = torch.tensor([COLORS[expected.color], BACKGROUNDS[expected.background]])
    coverage, areas, centroids = coverage[is_visible], areas[is_visible], centroids[is_visible]
    iou = found.shape_iou if found.scene.shape == expected.shape else 0.0
    if len(areas) and found.scene.shape != expected.shape:
        chosen = _chosen_frames(len(areas))
        iou = _best_iou(expected.shape, coverage[chosen], areas[chosen], centroids[chosen])
    return Agreement(
        right=score(expected, found.scene),
        shape_iou=iou,
        color_rmse=255 * (seen - asked).square().mean().sqrt().item(),
        centre_px=tuple(centroids.mean(0).tolist()) if len(areas) else None,
    )


def score(expected: Scene, measured: Scene) -> dict[str, bool]:
    """Which attributes agree: one entry per attribute, and ``"all"``."""
    verdict = {name: getattr(expected, name) == getattr(measured, name) for name in ATTRIBUTES}
    return verdict | {"all": all(verdict.values())}


@dataclass(frozen=True)
class _Motion:
    travel_x_px: float = 0.0
    travel_y_px: float = 0.0
    bounce_px: float = 0.0
    log_area_ratio: float = 0.0


def _nearest(rgb: Tensor, palette: Mapping[str, tuple[float, float, float]]) -> str:
    return min(palette, key=lambda name: math.dist(rgb.tolist(), palette[name]))


def _border_color(pixels: Tensor) -> Tensor:
    is_border = torch.ones(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool)
    is_border[_BORDER_PX:-_BORDER_PX, _BORDER_PX:-_BORDER_PX] = False
    return pixels[:, is_border].reshape(-1, 3).median(0).values


def _object_color(pixels: Tensor, background_rgb: Tensor) -> Tensor:
    flat = pixels.reshape(-1, 3)
    contrast = (flat - background_rgb).norm(dim=1)
    palette = torch.tensor(list(COLORS.values()))
    is_object = torch.cdist(flat, palette).amin(1) < contrast
    if not is_object.any():
        is_object = contrast >= contrast.max()
    # Blended edge pixels can resemble another palette colour; the core of the object does not.
    is_core = is_object & (contrast >= _CORE_SHARE * contrast[is_object].quantile(0.9))
    return flat[is_core].median(0).values


def _object_coverage(pixels: Tensor, background_rgb: Tensor, color_rgb: Tensor) -> Tensor:
    step = color_rgb - background_rgb
    if step.norm() < _MIN_CONTRAST:
        return pixels.new_zeros(pixels.shape[:3])
    coverage = (pixels - background_rgb) @ step / step.square().sum()
    return coverage.clamp(0.0, 1.0) * (coverage > _COVERAGE_FLOOR)


def _moments(coverage: Tensor) -> tuple[Tensor, Tensor]:
    is_object = (coverage > 0.5).float()
    areas = is_object.sum((1, 2))  # [F]
    position = torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5
    sums = torch.stack((is_object.sum(1) @ position, is_object.sum(2) @ position), 1)  # [F, 2]
    return areas, sums / areas.clamp(min=1.0)[:, None]


def _fit_shape(coverage: Tensor, areas: Tensor, centroids: Tensor) -> tuple[str, float]:
    if not len(areas):
        return SHAPES[0], 0.0
    chosen = _chosen_frames(len(areas))
    ious = {shape: _best_iou(shape, coverage[chosen], areas[chosen], centroids[chosen]) for shape in SHAPES}
    best = max(ious, key=lambda shape: ious[shape])
    return best, ious[best]


def _chosen_frames(count: int) -> Tensor:
    return torch.linspace(0, count - 1, min(_SHAPE_FRAMES, count)).round().long()


def _best_iou(shape: str, coverage: Tensor, areas: Tensor, centroids: Tensor) -> float:
    """Mean over frames of the best overlap with templates of slightly varied radius and position, 0..1."""
    factors, offsets = torch.tensor(_RADIUS_FACTORS), torch.tensor(_OFFSETS_PX)
    variants = torch.cartesian_prod(factors, offsets, offsets)  # [V, 3]
    radius = (areas / shape_area(shape, 1.0)).sqrt()  # [F]
    # The bounding box of a triangle, by which templates are placed, is centred above its centroid.
    lift = radius * half_extents(shape, 1.0)[1] / 3.0 if shape == "triangle" else torch.zeros_like(radius)
    templates = shape_coverage(
        shape,
        (centroids[:, :1] + variants[:, 1]).flatten(),
        (centroids[:, 1:] - lift[:, None] + variants[:, 2]).flatten(),
        (radius[:, None] * variants[:, 0]).flatten(),
    ).unflatten(0, (len(areas), len(variants)))  # [F, V, 64, 64]
    overlap = torch.minimum(templates, coverage[:, None]).sum((2, 3))  # [F, V]
    union = templates.sum((2, 3)) + coverage.sum((1, 2))[:, None] - overlap
    return (overlap / union).amax(1).mean().item()


def _track_motion(areas: Tensor, centroids: Tensor, is_visible: Tensor) -> _Motion:
    if is_visible.sum() < 2:
        return _Motion()
    times = frame_times(len(areas))[is_visible].double().numpy()
    height = np.abs(np.sin(2.0 * np.pi * times))
    basis = np.stack((np.ones_like(times), times - 0.5, height), 1)
    # Two or three frames cannot show a bounce: the height is zero there up to rounding.
    basis[:, 2] *= height.max() > 0.1
    seen = centroids[is_visible].double().numpy()
    _, travel_x = np.linalg.lstsq(basis[:, :2], seen[:, 0], rcond=None)[0]
    _, travel_y, sink = np.linalg.lstsq(basis, seen[:, 1], rcond=None)[0]
    edge = max(1, len(times) // 5)
    log_areas = areas[is_visible].double().log().numpy()
    log_ratio = log_areas[-edge:].mean() - log_areas[:edge].mean()
    return _Motion(float(travel_x), float(travel_y), float(-sink), float(log_ratio))


def _name_motion(motion: _Motion) -> str:
    shares = {
        "left": -motion.travel_x_px / _TYPICAL_TRAVEL_PX,
        "right": motion.travel_x_px / _TYPICAL_TRAVEL_PX,
        "up": -motion.travel_y_px / _TYPICAL_TRAVEL_PX,
        "down": motion.travel_y_px / _TYPICAL_TRAVEL_PX,
        "grows": motion.log_area_ratio / _TYPICAL_LOG_AREA_RATIO,
        "shrinks": -motion.log_area_ratio / _TYPICAL_LOG_AREA_RATIO,
        "bounces": motion.bounce_px / _TYPICAL_BOUNCE_PX,
    }
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= _MIN_MOTION_SHARE else "stays"
