"""The procedural world of the demo model: one flat shape on a plain background, drawn from five attributes.

Image coordinates are pixels with x to the right and y downwards; the centre of pixel ``(row, column)`` is
``(column + 0.5, row + 0.5)``. Clip time runs from 0 (first frame) to 1 (last frame). Clips are
``[F, 3, 64, 64]`` float32, RGB in 0..1.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from .wording import (
    ANY_SHAPE_WORDS,
    BACKGROUND_WORDS,
    COLOR_WORDS,
    FINITE_WORDS,
    GERUND_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    TEMPLATES,
    covering_captions,
)

IMAGE_SIZE = 64
KEYFRAMES = 5
MEDIUM_FRAMES = 17
FULL_FRAMES = 65

SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
MOTIONS = ("left", "right", "up", "down", "grows", "shrinks", "bounces", "stays")

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.08, 0.08),
    "green": (0.08, 0.75, 0.15),
    "blue": (0.08, 0.20, 0.95),
    "yellow": (0.97, 0.88, 0.08),
    "purple": (0.65, 0.08, 0.80),
    "cyan": (0.08, 0.88, 0.92),
}
# Gray sits midway between black and white: a lighter gray was confused with a slightly dimmed white.
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "gray": (0.5, 0.5, 0.5),
    "brown": (0.42, 0.26, 0.12),
}

SIZE_RADIUS_PX = {"small": 7.0, "large": 13.0}
# Share of the nominal radius at the small and at the large end of "grows" and "shrinks".
SCALE_RANGE = (0.6, 1.4)

# Proportions per unit of radius, chosen so that the four areas lie within 2.5..3.2 radius ** 2.
_SQUARE_HALF_SIDE = 0.886
_TRIANGLE_CIRCUMRADIUS = 1.4
_CROSS_HALF_LENGTH = 1.2
_CROSS_HALF_WIDTH = 0.35

# Anti-aliasing bleeds up to one pixel past a sharp corner; two keep the border pure background.
_MARGIN_PX = 2.0
_TRAVEL_PX = {"small": (28.0, 36.0), "large": (22.0, 28.0)}
_BOUNCE_PX = (16.0, 26.0)
_ALONG_JITTER_PX = 3.0
_ACROSS_JITTER_PX = 12.0

# One scene in eight is held out.
_HELD_OUT_MODULUS = 8
_MIN_CORPUS = 64

_REVERSED_MOTIONS = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "grows": "shrinks",
    "shrinks": "grows",
}

_CANONICAL_SHARE = 0.4
_KEEP_ATTRIBUTE = 0.75


@dataclass(frozen=True)
class Scene:
    """What a clip shows, as one word per attribute.

    Attributes:
        size: one of ``SIZES``.
        color: a key of ``COLORS``.
        shape: one of ``SHAPES``.
        motion: one of ``MOTIONS``.
        background: a key of ``BACKGROUNDS``.

    Raises:
        ValueError: if an attribute is not in its list.
    """

    size: str
    color: str
    shape: str
    motion: str
    background: str

    def __post_init__(self) -> None:
        for name, allowed in ATTRIBUTES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"expected {name} in {', '.join(allowed)}, got {value!r} in Scene")

    def caption(self) -> str:
        """Canonical caption: ``a large purple triangle moves up on a white background``."""
        motion = FINITE_WORDS[self.motion][0]
        return f"a {self.size} {self.color} {self.shape} {motion} on a {self.background} background"


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": SIZES,
    "color": tuple(COLORS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "background": tuple(BACKGROUNDS),
}


@dataclass(frozen=True)
class Layout:
    """Where a clip shows its object: the continuous parameters that no caption names.

    Attributes:
        centre_x: middle of the path, pixels from the left edge.
        centre_y: middle of the path, pixels from the top edge.
        travel_px: length of the path, or height of the bounce; 0 where the motion needs none.
    """

    centre_x: float
    centre_y: float
    travel_px: float


def all_scenes() -> list[Scene]:
    """Every combination of the five attributes, 1536 scenes in a fixed order."""
    return [Scene(*values) for values in product(*ATTRIBUTES.values())]


def is_held_out(scene: Scene) -> bool:
    """Whether a scene belongs to the evaluation split (about 12.5 %), the same on every machine.

    A scene and its reverse belong together, as training runs clips backwards.
    """
    caption = min(scene.caption(), reversed_scene(scene).caption())
    return zlib.crc32(caption.encode("ascii")) % _HELD_OUT_MODULUS == 0


def reversed_scene(scene: Scene) -> Scene:
    """The scene that the same clip shows when it runs backwards."""
    return replace(scene, motion=_REVERSED_MOTIONS.get(scene.motion, scene.motion))


def frame_times(count: int) -> Tensor:
    """Times of ``count`` evenly spaced frames: ``[count]`` float32 from 0 to 1."""
    return torch.linspace(0.0, 1.0, count)


def half_extents(shape: str, radius: float) -> tuple[float, float]:
    """Half the width and half the height of a shape of the given radius, in pixels."""
    if shape == "triangle":
        circumradius = _TRIANGLE_CIRCUMRADIUS * radius
        return circumradius * math.sqrt(0.75), circumradius * 0.75
    share = {"circle": 1.0, "square": _SQUARE_HALF_SIDE, "cross": _CROSS_HALF_LENGTH}[shape]
    return share * radius, share * radius


def shape_area(shape: str, radius: float) -> float:
    """Area of a shape of the given radius, in square pixels."""
    if shape == "circle":
        share = math.pi
    elif shape == "square":
        share = 4.0 * _SQUARE_HALF_SIDE**2
    elif shape == "triangle":
        share = math.sqrt(27.0) / 4.0 * _TRIANGLE_CIRCUMRADIUS**2
    else:
        share = 4.0 * _CROSS_HALF_WIDTH * (2.0 * _CROSS_HALF_LENGTH - _CROSS_HALF_WIDTH)
    return share * radius**2


def signed_distance(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to the outline of a shape, in pixels, negative inside.

    Args:
        shape: one of ``SHAPES``.
        x: pixels to the right of the middle of the bounding box.
        y: pixels below the middle of the bounding box, broadcastable with ``x``.
        radius: nominal radius in pixels, broadcastable with ``x``.

    Returns:
        Distances in the broadcast shape; exact near straight edges, a lower bound beyond triangle corners.
    """
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "square":
        half_side = _SQUARE_HALF_SIDE * radius
        return _box_distance(x, y, half_side, half_side)
    if shape == "triangle":
        circumradius = _TRIANGLE_CIRCUMRADIUS * radius
        # The centroid lies a quarter of the circumradius below the middle of the bounding box.
        below = y - circumradius / 4.0
        sides = math.sqrt(0.75) * x.abs() - 0.5 * below
        return torch.maximum(sides, below) - circumradius / 2.0
    length, width = _CROSS_HALF_LENGTH * radius, _CROSS_HALF_WIDTH * radius
    return torch.minimum(_box_distance(x, y, length, width), _box_distance(x, y, width, length))


def shape_coverage(shape: str, centre_x: Tensor, centre_y: Tensor, radius: Tensor) -> Tensor:
    """Anti-aliased coverage of the image by a shape, one picture per position.

    Args:
        shape: one of ``SHAPES``.
        centre_x: ``[F]`` middle of the bounding box, pixels from the left edge.
        centre_y: ``[F]`` middle of the bounding box, pixels from the top edge.
        radius: ``[F]`` nominal radius in pixels.

    Returns:
        ``[F, 64, 64]`` in 0..1.
    """
    pixels = torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5
    x = pixels[None, None, :] - centre_x[:, None, None]  # [F, 1, 64]
    y = pixels[None, :, None] - centre_y[:, None, None]  # [F, 64, 1]
    distance = signed_distance(shape, x, y, radius[:, None, None])  # [F, 64, 64]
    return (0.5 - distance).clamp(0.0, 1.0)


def sample_layout(scene: Scene, rng: np.random.Generator) -> Layout:
    """Draw a path that keeps the object inside the frame at all times.

    Straight paths are centred within 3 pixels of the middle of the frame along their direction, so that the
    first frame alone already tells the side the object starts from.

    Args:
        scene: what the clip shows.
        rng: source of the random numbers; its state advances.
    """
    radius = SIZE_RADIUS_PX[scene.size]
    if scene.motion in ("grows", "shrinks"):
        radius *= SCALE_RANGE[1]
    room_x, room_y = (IMAGE_SIZE - 2.0 * (extent + _MARGIN_PX) for extent in half_extents(scene.shape, radius))
    jitter_x = jitter_y = _ACROSS_JITTER_PX
    travel = 0.0
    if scene.motion in ("left", "right"):
        travel = _sample_travel(_TRAVEL_PX[scene.size], room_x, rng)
        room_x, jitter_x = room_x - travel, _ALONG_JITTER_PX
    elif scene.motion in ("up", "down", "bounces"):
        span = _BOUNCE_PX if scene.motion == "bounces" else _TRAVEL_PX[scene.size]
        travel = _sample_travel(span, room_y, rng)
        room_y, jitter_y = room_y - travel, _ALONG_JITTER_PX
    return Layout(
        centre_x=IMAGE_SIZE / 2 + min(room_x / 2, jitter_x) * rng.uniform(-1.0, 1.0),
        centre_y=IMAGE_SIZE / 2 + min(room_y / 2, jitter_y) * rng.uniform(-1.0, 1.0),
        travel_px=travel,
    )


def track(scene: Scene, layout: Layout, times: Tensor | np.ndarray | Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Position and radius of the object over time.

    Args:
        scene: what the clip shows.
        layout: where it shows it.
        times: ``[F]`` clip times in 0..1.

    Returns:
        ``centre_x``, ``centre_y`` and ``radius``, each ``[F]`` float32 in pixels.
    """
    moments = torch.as_tensor(times, dtype=torch.float32)
    centre_x = torch.full_like(moments, layout.centre_x)
    centre_y = torch.full_like(moments, layout.centre_y)
    radius = torch.full_like(moments, SIZE_RADIUS_PX[scene.size])
    path = layout.travel_px * (moments - 0.5)
    if scene.motion in ("left", "right"):
        centre_x = centre_x + (path if scene.motion == "right" else -path)
    elif scene.motion in ("up", "down"):
        centre_y = centre_y + (path if scene.motion == "down" else -path)
    elif scene.motion == "bounces":
        # Two bounces touch the ground at 0, 0.5 and 1: five keyframes see every turning point.
        height = torch.sin(2.0 * math.pi * moments).abs()
        centre_y = centre_y + layout.travel_px * (0.5 - height)
    elif scene.motion in ("grows", "shrinks"):
        low, high = SCALE_RANGE if scene.motion == "grows" else SCALE_RANGE[::-1]
        radius = radius * (low + (high - low) * moments)
    return centre_x, centre_y, radius


def render(scene: Scene, layout: Layout, times: Tensor | np.ndarray | Sequence[float]) -> Tensor:
    """Draw a clip.

    Args:
        scene: what the clip shows.
        layout: where it shows it.
        times: ``[F]`` clip times in 0..1, in any order.

    Returns:
        ``[F, 3, 64, 64]`` float32, RGB in 0..1.
    """
    alpha = shape_coverage(scene.shape, *track(scene, layout, times))[:, None]  # [F, 1, 64, 64]
    color = torch.tensor(COLORS[scene.color])[:, None, None]
    background = torch.tensor(BACKGROUNDS[scene.background])[:, None, None]
    return torch.lerp(background, color, alpha)


def paraphrase(scene: Scene, rng: np.random.Generator) -> str:
    """One of many captions that fit a scene, canonical two times in five.

    The others leave out attributes (never both shape and colour), change the order and use synonyms.

    Args:
        scene: what the clip shows.
        rng: source of the random numbers; its state advances.

    Returns:
        Lower-case letters, single spaces and commas only.
    """
    if rng.random() < _CANONICAL_SHARE:
        return scene.caption()
    size, color, shape, motion, background = (rng.random(len(ATTRIBUTES)) < _KEEP_ATTRIBUTE).tolist()
    if not (color or shape):
        color, shape = (True, False) if rng.random() < 0.5 else (False, True)
    adjectives = [_pick(SIZE_WORDS[scene.size], rng)] if size else []
    adjectives += [_pick(COLOR_WORDS[scene.color], rng)] if color else []
    noun = _pick(SHAPE_WORDS[scene.shape] if shape else ANY_SHAPE_WORDS, rng)
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    return template(
        " ".join([*adjectives, noun]),
        _pick(FINITE_WORDS[scene.motion], rng) if motion else "",
        _pick(GERUND_WORDS[scene.motion], rng) if motion else "",
        _pick(BACKGROUND_WORDS[scene.background], rng) if background else "",
    )


def caption_corpus(seed: int, count: int) -> list[str]:
    """Captions to train a tokenizer on; every word of the language occurs.

    Args:
        seed: seed of the random captions.
        count: number of captions, at least 64.

    Returns:
        ``count`` captions: a fixed list that covers the words, then paraphrases of scenes not held out.

    Raises:
        ValueError: if ``count`` is below 64.
    """
    if count < _MIN_CORPUS:
        raise ValueError(f"expected count >= {_MIN_CORPUS}, got {count} in caption_corpus")
    rng = np.random.default_rng(seed)
    captions = covering_captions()
    scenes = [scene for scene in all_scenes() if not is_held_out(scene)]
    while len(captions) < count:
        captions.append(paraphrase(scenes[rng.integers(len(scenes))], rng))
    return captions


def vocabulary() -> list[str]:
    """All words that captions use, sorted."""
    return sorted({word for caption in covering_captions() for word in caption.replace(",", "").split()})


def _box_distance(x: Tensor, y: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    right, below = x.abs() - half_width, y.abs() - half_height
    outside = torch.hypot(right.clamp(min=0.0), below.clamp(min=0.0))
    return outside + torch.maximum(right, below).clamp(max=0.0)


def _sample_travel(span_px: tuple[float, float], room_px: float, rng: np.random.Generator) -> float:
    low, high = (min(bound, room_px) for bound in span_px)
    return float(rng.uniform(low, high))


def _pick(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[rng.integers(len(words))]
