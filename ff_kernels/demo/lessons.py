"""Lessons for the keyframe network: what a caption says of a clip, whatever the noisy clip shows.

Every clip of a caption shows its object elsewhere, in one of 24 pairs of colours, and the mean over all of them knows
no direction: a product of direction, time, place and colours has no gradient until its parts are there. A lesson
shows pure noise and asks for the mean clip of its caption, at first with every object in the same paint, so that the
network learns where things are, and then more and more in the colours that the caption names. The noise is quiet at
first, as at full strength it drowns what the caption makes of the features.

Lessons come in pairs of opposite captions under the same noise. What both answers have in common, which is nearly all
of the error, cancels in their difference, and the difference weighs more (``training.losses.CONTRAST``).

Shapes have lessons of their own, as half seen they can be guessed without the caption: of twins, clips that differ in
shape alone, one is shown and two others are asked for. Growth has them as well: sizes that are half seen look alike in
all frames, so lessons show mixtures of a clip and its reverse and ask for the one of which more is shown.

Measurements: NOTES.md.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.movq import MoVQ
from ..stages.tokenizer import Tokenizer
from ..training.noise_levels import draw_normal, noise_levels
from . import batches
from .batches import LatentClips
from .world.scenes import (
    BACKGROUNDS,
    IMAGE_SIZE,
    KEYFRAMES,
    SHAPES,
    Scene,
    frame_times,
    is_held_out,
    paraphrase,
    render,
    reversed_scene,
    sample_layout,
    shape_coverage,
    track,
)

# What every object is painted with at first, in all latent channels.
PAINT = 0.6
# How loud the noise is at first, as a share of its own strength.
QUIET = 0.05
# Of a stage of lessons, the share before colours and noise come in and the share over which they do.
HOLD, RAMP = 0.2, 0.3
# Of 50 steps, the noisiest last, a span at which hardly anything of a clip is seen; its end, the last step, is left
# out, as nothing at all is.
BLIND_STEPS = (44, 49)
# The steps at which outlines are seen well enough to be drawn anew and not so well that they are there already.
OUTLINE_STEPS = (8, 34)
# The steps at which sizes are half seen.
GROWTH_STEPS = (12, 44)
# Share of the other clips that are drawn at the steps that decide outlines.
OUTLINE_SHARE = 0.4
# Of pairs of lessons, the share whose captions are never reworded.
_CANONICAL_SHARE = 0.5
_LAYOUTS = 32
# Motions that no reversed clip shows of each other.
_UP_OR_NOT = {"bounces": "stays", "stays": "bounces"}
_GROWTH = ("grows", "shrinks")


@dataclass(frozen=True)
class Mix:
    """Which shares of a batch are lessons; the rest are clips as they are.

    Attributes:
        growth: lessons from noise that tell growing from shrinking, the last that is learnt.
        reverses: lessons on the same from a clip mixed with its reverse.
        noise: lessons from noise on every motion.
        twins: lessons from a twin.
        pairs_twins: whether the difference of two twins weighs more; outlines are learnt sooner so, but overdrawn.
    """

    growth: float
    reverses: float
    noise: float
    twins: float
    pairs_twins: bool


FIRST = Mix(growth=0, reverses=0, noise=1 / 8, twins=1 / 4, pairs_twins=True)
FINISH = Mix(growth=1 / 8, reverses=1 / 8, noise=1 / 8, twins=1 / 4, pairs_twins=False)


@dataclass(frozen=True)
class Lessons:
    """What there is to learn about each caption, as latents.

    Attributes:
        pairs: scenes to ask for, as often as clips show them, and what each is told apart from.
        means: mean clip ``[T, 4, h, w]`` for size, colour, motion and background; the shape hardly shows in it.
        plain: background alone, ``[4, h, w]``.
        coverage: share of clips in which the object covers a place, ``[T, 1, h, w]`` for size, shape and motion.
        growth_clips: clips that grow or shrink, each of which is mixed with its reverse.
    """

    pairs: tuple[tuple[Scene, Scene], ...]
    means: dict[tuple[str, ...], Tensor]
    plain: dict[str, Tensor]
    coverage: dict[tuple[str, ...], Tensor]
    growth_clips: LatentClips

    @cached_property
    def on_growth(self) -> "Lessons":
        """The lessons that tell growing from shrinking, or all where clips show neither."""
        return replace(self, pairs=tuple(self.pairs[i] for i in _places_of_growth([scene for scene, _ in self.pairs])))

    def target(self, scene: Scene, colours: float) -> Tensor:
        """Return the clip ``[T, 4, h, w]`` to draw for a scene: all paint at ``colours`` 0, the mean clip at 1."""
        plain = self.plain[scene.background]
        painted = PAINT * self.coverage[scene.size, scene.shape, scene.motion]
        return plain + torch.lerp(painted, self.means[_visible(scene)] - plain, colours)


def _places_of_growth(scenes: Sequence[Scene]) -> list[int]:
    """Where scenes grow or shrink, or all places where none does."""
    return [i for i, scene in enumerate(scenes) if scene.motion in _GROWTH] or [*range(len(scenes))]


def select_growth(clips: LatentClips) -> LatentClips:
    """Return the clips of growing and shrinking objects, or all where there are none."""
    places = _places_of_growth(clips.scenes)
    return LatentClips(clips.latents[places], tuple(clips.scenes[i] for i in places))


def _visible(scene: Scene) -> tuple[str, ...]:
    return scene.size, scene.color, scene.motion, scene.background


@torch.inference_mode()
def make_lessons(clips: LatentClips, movq: MoVQ) -> Lessons:
    """Work out the lessons from clips, which count backwards as well."""
    both = [*clips.scenes, *map(reversed_scene, clips.scenes)]
    latents = torch.cat([clips.latents, clips.latents.flip(1)])
    members = defaultdict(list)
    for i, scene in enumerate(both):
        members[_visible(scene)].append(i)
    shown = set(both)
    pairs = tuple((scene, other) for scene in both if (other := _opposite(scene)) in shown)
    side = latents.shape[-1]
    plain = {
        name: movq.encode((torch.tensor(rgb) * 2 - 1)[None, :, None, None].expand(1, 3, IMAGE_SIZE, IMAGE_SIZE))[0]
        for name, rgb in BACKGROUNDS.items()
    }
    return Lessons(
        pairs=pairs,
        means={key: latents[places].float().mean(dim=0) for key, places in members.items()},
        plain=plain,
        coverage={(s.size, s.shape, s.motion): _mean_coverage(s, side) for s in set(map(_uncoloured, both))},
        growth_clips=select_growth(clips),
    )


def _opposite(scene: Scene) -> Scene:
    """The scene that differs in its motion: the other way, or up and down against not at all."""
    other = reversed_scene(scene)
    return replace(other, motion=_UP_OR_NOT.get(other.motion, other.motion))


def _uncoloured(scene: Scene) -> Scene:
    return Scene(scene.size, "red", scene.shape, scene.motion, "black")


def _mean_coverage(scene: Scene, side: int) -> Tensor:
    rng = np.random.default_rng(0)
    total = torch.zeros(KEYFRAMES, 1, side, side)
    for _ in range(_LAYOUTS):
        places = track(scene, sample_layout(scene, rng), frame_times(KEYFRAMES))
        total += F.avg_pool2d(shape_coverage(scene.shape, *places)[:, None], IMAGE_SIZE // side)
    return total / _LAYOUTS


def grown_at(done: float) -> float:
    """Return how far colours and noise have come in, 0..1, when a share ``done`` of the stage is over."""
    return min(1.0, max(0.0, (done - HOLD) / RAMP))


def draw_lessons(
    rng: np.random.Generator, batch: int, lessons: Lessons, tokenizer: Tokenizer, grown: float = 1.0
) -> tuple[Tensor, ...]:
    """Draw a batch for ``KeyframeNoise`` of lessons from noise alone: what is shown is zero.

    Args:
        rng: source of the random numbers.
        batch: lessons, an even number: opposites follow each other.
        lessons: what there is to learn.
        tokenizer: of the text encoder.
        grown: 0 asks for paint and shows quiet noise, 1 asks for colours and shows all of it.
    """
    pairs = [lessons.pairs[pick] for pick in rng.integers(len(lessons.pairs), size=batch // 2)]
    said = _worded(rng, pairs)
    latents = torch.stack([lessons.target(scene, grown) for pair in pairs for scene in pair])
    loudness = QUIET + (1 - QUIET) * grown
    return _paired(rng, latents, torch.zeros_like(latents), batches.tokenize(tokenizer, said), BLIND_STEPS, loudness)


def _worded(rng: np.random.Generator, pairs: Sequence[tuple[Scene, Scene]]) -> list[str]:
    """Say what pairs of scenes show, both of a pair in the same words."""
    said = []
    for pair in pairs:
        canonical, seed = rng.random() < _CANONICAL_SHARE, int(rng.integers(2**62))
        said += [s.caption() if canonical else paraphrase(s, np.random.default_rng(seed)) for s in pair]
    return said


def draw_reverses(rng: np.random.Generator, batch: int, clips: LatentClips, tokenizer: Tokenizer) -> tuple[Tensor, ...]:
    """Draw a batch for ``KeyframeNoise`` that shows mixtures of clips and their reverses, the larger share the named.

    ``batch`` is even: a clip and its reverse follow each other.
    """
    picks = rng.integers(len(clips.scenes), size=batch // 2)
    clip = clips.latents[torch.from_numpy(picks)].float()
    latents = torch.stack([clip, clip.flip(1)], dim=1).flatten(0, 1)
    other = torch.from_numpy(rng.random(batch // 2, dtype=np.float32) / 2).repeat_interleave(2)
    shown = torch.lerp(latents, latents.flip(1), other[:, None, None, None, None])
    said = _worded(rng, [(clips.scenes[pick], reversed_scene(clips.scenes[pick])) for pick in picks])
    return _paired(rng, latents, shown, batches.tokenize(tokenizer, said), GROWTH_STEPS)


def _shapes_of(scene: Scene) -> list[Scene]:
    return [replace(scene, shape=shape) for shape in SHAPES]


@torch.inference_mode()
def encode_twins(movq: MoVQ, count: int, seed: int) -> LatentClips:
    """Encode ``count`` layouts with each of the four shapes, which follow each other in ``SHAPES``' order.

    Only scenes are drawn of which no shape is held out.
    """
    latents, scenes = [], []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        group = _shapes_of(batches.draw_scene(rng))
        while any(map(is_held_out, group)):
            group = _shapes_of(batches.draw_scene(rng))
        # Where a cross fits the others do: the triangle is wider by a quarter of a pixel, which the margin has.
        layout = sample_layout(replace(group[0], shape="cross"), rng)
        scenes.extend(group)
        latents.extend(movq.encode(render(scene, layout, frame_times(KEYFRAMES)) * 2 - 1).half() for scene in group)
    return LatentClips(torch.stack(latents), tuple(scenes))


def draw_twins(rng: np.random.Generator, batch: int, twins: LatentClips, tokenizer: Tokenizer) -> tuple[Tensor, ...]:
    """Draw a batch for ``KeyframeNoise`` that shows one twin and names two others; half of the clips run backwards.

    ``batch`` is even: those that are shown the same follow each other.
    """
    count = len(SHAPES)
    shapes = np.stack([rng.permutation(count)[:3] for _ in range(batch // 2)])
    first = count * rng.integers(len(twins.scenes) // count, size=batch // 2)
    seen, named = (first + shapes[:, 0]).repeat(2), (first[:, None] + shapes[:, 1:]).reshape(-1)
    backwards = (rng.random(batch // 2) < 0.5).repeat(2)
    latents, shown = (
        batches.run_backwards(twins.latents[torch.from_numpy(places)].float(), backwards) for places in (named, seen)
    )
    scenes = batches.reverse_scenes([twins.scenes[place] for place in named], backwards)
    said = [scene.caption() for scene in scenes]
    return _paired(rng, latents, shown, batches.tokenize(tokenizer, said), OUTLINE_STEPS)


def _paired(
    rng: np.random.Generator,
    latents: Tensor,
    shown: Tensor,
    said: tuple[Tensor, Tensor],
    span: tuple[int, int],
    loudness: float = 1.0,
) -> tuple[Tensor, ...]:
    """Give each two neighbours the same noise and step, and name them as each other's opposite."""
    count = len(latents)
    noise = loudness * draw_normal(rng, latents[::2]).repeat_interleave(2, dim=0)
    levels = (column.repeat_interleave(2) for column in draw_steps(rng, count // 2, span))
    keep = torch.ones(count, dtype=torch.bool)
    return latents, noise, *said, keep, *levels, shown, torch.tensor([1, -1]).repeat(count // 2)


def draw_steps(rng: np.random.Generator, batch: int, span: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Draw a timestep and its cumulative alpha per clip, ``[B]``: one of 50 steps from a span without its end."""
    timesteps, bars = noise_levels(50)
    picks = torch.from_numpy(rng.integers(*span, size=batch))
    return timesteps.flip(0)[picks], bars.flip(0)[picks]


def draw_keyframes_and_lessons(
    rng: np.random.Generator,
    batch: int,
    clips: LatentClips,
    lessons: Lessons,
    twins: LatentClips,
    tokenizer: Tokenizer,
    mix: Mix = FIRST,
) -> tuple[Tensor, ...]:
    """Draw a batch for ``KeyframeNoise``: clips as they are and the lessons that ``mix`` names."""
    # Pairs are not parted.
    growth, reverse, blind, twin = (
        2 * round(batch * share / 2) for share in (mix.growth, mix.reverses, mix.noise, mix.twins)
    )
    count = batch - growth - reverse - blind - twin
    *clip, timesteps, bars = batches.draw_keyframes(rng, count, clips, tokenizer)
    deciding, there = torch.from_numpy(rng.random(count) < OUTLINE_SHARE), draw_steps(rng, count, OUTLINE_STEPS)
    levels = (torch.where(deciding, new, old) for new, old in zip(there, (timesteps, bars), strict=True))
    parts = [(*clip, *levels, clip[0], torch.zeros(count, dtype=torch.long))]
    if growth:
        parts.append(draw_lessons(rng, growth, lessons.on_growth, tokenizer))
    if reverse:
        parts.append(draw_reverses(rng, reverse, lessons.growth_clips, tokenizer))
    if blind:
        parts.append(draw_lessons(rng, blind, lessons, tokenizer))
    if twin:
        *columns, opposite = draw_twins(rng, twin, twins, tokenizer)
        parts.append((*columns, opposite * mix.pairs_twins))
    return tuple(_join(column) for column in zip(*parts, strict=True))


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate rows; captions of other lengths are padded as ``tokenize`` pads them."""
    if parts[0].ndim == 2:
        length = max(rows.shape[1] for rows in parts)
        parts = [F.pad(rows, (0, length - rows.shape[1])) for rows in parts]
    return torch.cat(list(parts))
