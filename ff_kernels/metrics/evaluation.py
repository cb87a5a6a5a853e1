"""Every metric of a set of clips on disk against a reference set, read a few frames at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from ..media.clips import ClipFiles, find_clips, pair_clips
from .consistency import FIRST_FRAME, NEIGHBOUR_LPIPS, TemporalConsistency
from .features import Features
from .fidelity import fidelity_curves
from .frechet import FVD_CLIPS, FVD_FRAMES, FeatureStatistics, frechet_distance
from .inception import SPLITS, InceptionScore
from .lpips import Distance
from .tables import REFERENCE, Measure, measure_clips

UNITS = {"PSNR": "dB"}
_LEAST_TEMPORAL = 3
# Called with clips done and clips in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Networks:
    """The user's feature networks; a metric whose network is None is reported as not measured.

    Attributes:
        lpips: from ``lpips.load_lpips``.
        i3d: for FVD, from ``features.load_i3d``.
        inception: for the Inception Score, from ``features.load_inception``.
    """

    lpips: Distance | None = None
    i3d: Features | None = None
    inception: Features | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured and what was not.

    Attributes:
        measures: rows of the table.
        missing: one phrase per metric that was not measured: which and why.
        clips: clips evaluated.
    """

    measures: tuple[Measure, ...]
    missing: tuple[str, ...]
    clips: int


class _Set:
    """One set of clips as it is read: temporal curves, feature statistics, class probabilities."""

    def __init__(self, networks: Networks, splits: int | None) -> None:
        self.networks = networks
        self.curves: dict[str, list[Tensor]] = {}
        self.statistics = FeatureStatistics()
        self.inception = None if networks.inception is None or splits is None else InceptionScore(splits)
        self.short: list[str] = []

    def begin(self, clip: ClipFiles) -> None:
        self.clip, self.frames = clip, 0
        self.temporal, self.head = TemporalConsistency(self.networks.lpips), []

    def add(self, frames: Tensor) -> None:
        self.temporal.add(frames)
        if self.frames < FVD_FRAMES and (self.networks.i3d is not None or self.inception is not None):
            self.head.append(frames[: FVD_FRAMES - self.frames])
        self.frames += len(frames)

    def end(self) -> None:
        if self.frames < _LEAST_TEMPORAL:
            self.short.append(self.clip.name)
        else:
            for name, curve in self.temporal.curves().items():
                self.curves.setdefault(name, []).append(curve)
        if not self.head:
            return
        if self.frames < FVD_FRAMES:
            raise InputError(
                f"expected {FVD_FRAMES} or more frames for FVD and IS, got {self.frames}: give longer clips or leave "
                "their networks out"
            )
        start = torch.cat(self.head).transpose(0, 1)[None]  # [1, 3, 16, H, W]
        if self.networks.i3d is not None:
            self.statistics.add(self.networks.i3d(start))
        if self.inception is not None:
            self.inception.add(self.networks.inception(start))


def evaluate(
    reference: str | Path, folder: str | Path, networks: Networks | None = None, *, is_paired: bool = True,
    splits: int = SPLITS, progress: Progress | None = None,
) -> Evaluation:  # fmt: skip
    """Measure the clips at ``folder`` against those at ``reference``.

    Memory holds a few frames per clip (16 with an I3D or an Inception network), one value per frame of every clip, and
    the sums of the feature statistics.

    Args:
        reference: a video or a folder of clips, see ``clips.find_clips``.
        folder: the clips to judge, of the same names, frame counts and sizes; with ``is_paired`` False any clips.
        networks: feature networks of the user.
        is_paired: whether clips correspond; without, only temporal consistency, FVD and IS are measured.
        splits: of the Inception Score.
        progress: told after each clip read, pairs counting as one.

    Returns:
        PSNR, SSIM, MSE, LPIPS, FVD, IS, and temporal consistency of both sets; means over clips.

    Raises:
        InputError: if clips are missing, unreadable, too short for a network given, or differ in count.
        ShapeError: if a pair differs in size or frames are too small.

    Source: the paper's evaluation on UCF-101, and the columns of its table 3.
    """
    networks = networks or Networks()
    true, judged = _Set(networks, None), _Set(networks, splits)
    references, clips = find_clips(reference), find_clips(folder)
    if networks.inception is not None and not 1 <= splits <= len(clips):
        raise InputError(
            f"expected 1..{len(clips)} splits of the Inception Score for as many clips, got {splits}: take another "
            "number", setting="splits",
        )  # fmt: skip
    fidelity: dict[str, list[Tensor]] = {}
    if is_paired:
        pairs = pair_clips(references, clips)
        for done, (first, second) in enumerate(pairs, 1):
            for name, curve in _read_pair(first, second, true, judged).items():
                fidelity.setdefault(name, []).append(curve)
            _report(progress, done, len(pairs))
    else:
        jobs = [(true, clip) for clip in references.values()] + [(judged, clip) for clip in clips.values()]
        for done, (target, clip) in enumerate(jobs, 1):
            _read_alone(clip, target)
            _report(progress, done, len(jobs))
    measures = [measure_clips(name, UNITS.get(name, ""), curves) for name, curves in fidelity.items()]
    measures += _of_sets(true, judged)
    for target, suffix in ((judged, ""), (true, REFERENCE)):
        measures += [
            measure_clips(f"{name}{suffix}", "", curves, first=FIRST_FRAME) for name, curves in target.curves.items()
        ]
    return Evaluation(tuple(measures), tuple(_missing(true, judged, is_paired)), len(clips))


def measure_pair(reference: Tensor, frames: Tensor, distance: Distance | None = None) -> dict[str, Tensor]:
    """Return PSNR, SSIM, MSE and, with a network, LPIPS of every frame: names to ``[T]``.

    Args:
        reference: ``[T, 3, H, W]`` in 0..1.
        frames: ``[T, 3, H, W]`` in 0..1.
        distance: from ``lpips.load_lpips``.

    Raises:
        ShapeError: if a shape is wrong, the shapes differ or frames are too small.
        InputError: if a clip has another type or range of pixels.
    """
    curves = fidelity_curves(reference, frames)
    return curves if distance is None else curves | {"LPIPS": distance(reference, frames).to(frames.device)}


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _read_alone(clip: ClipFiles, target: _Set) -> None:
    target.begin(clip)
    with _Named(clip.name):
        for chunk in clip.chunks():
            target.add(chunk)
        target.end()


def _read_pair(first: ClipFiles, second: ClipFiles, true: _Set, judged: _Set) -> dict[str, Tensor]:
    curves: dict[str, list[Tensor]] = {}
    true.begin(first)
    judged.begin(second)
    with _Named(second.name):
        for expected, found in _in_step(first, second):
            for name, values in measure_pair(expected, found, judged.networks.lpips).items():
                curves.setdefault(name, []).append(values)
            true.add(expected)
            judged.add(found)
        true.end()
        judged.end()
    return {name: torch.cat(parts) for name, parts in curves.items()}


def _in_step(first: ClipFiles, second: ClipFiles) -> Iterator[tuple[Tensor, Tensor]]:
    counts = [0, 0]
    for chunks in zip_longest(first.chunks(), second.chunks()):
        counts = [count + (0 if chunk is None else len(chunk)) for count, chunk in zip(counts, chunks, strict=True)]
        # After the first difference the rest is only counted, for the message.
        if counts[0] == counts[1]:
            expected, found = chunks
            if expected.shape != found.shape:
                raise ShapeError(
                    f"expected frames of {expected.shape[3]} x {expected.shape[2]} pixels as in '{first.files[0]}', "
                    f"got {found.shape[3]} x {found.shape[2]}: resize one of them"
                )
            yield expected, found
    if counts[0] != counts[1]:
        raise InputError(
            f"expected {counts[0]} frames as in '{first.files[0]}', got {counts[1]} (a GIF joins equal frames): "
            "give clips of equal length"
        )


class _Named:
    """Puts the clip's name before the text of an error."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (InputError, ShapeError)):
            raise type(error)(f"clip '{self.name}': {error}") from error


def _of_sets(true: _Set, judged: _Set) -> list[Measure]:
    measures = []
    if judged.networks.i3d is not None:
        counts = true.statistics.count, judged.statistics.count
        note = "no interval: resampling biases a Frechet distance"
        if min(counts) < FVD_CLIPS:
            note += (
                f"; {counts[0]} against {counts[1]} clips, fewer than the {FVD_CLIPS:,} of published numbers, read high"
            )
        value = frechet_distance(true.statistics, judged.statistics)
        measures.append(Measure("FVD", "", value, items=counts[1], note=note))
    if judged.inception is not None:
        score = judged.inception.score()
        note = f"deviation {score.deviation:.4f} over {judged.inception.splits} splits, in place of an interval"
        measures.append(Measure("IS", "", score.mean, items=judged.inception.count, note=note))
    return measures


def _missing(true: _Set, judged: _Set, is_paired: bool) -> Iterator[str]:
    networks = judged.networks
    if not is_paired:
        yield "PSNR, SSIM, MSE and LPIPS: they need pairs of clips"
    if networks.lpips is None:
        yield ("LPIPS and " if is_paired else "") + f"{NEIGHBOUR_LPIPS}: no network"
    if networks.i3d is None:
        yield "FVD: no network"
    if networks.inception is None:
        yield "IS: no network"
    for short, name in ((judged.short, "evaluated"), (true.short, "reference")):
        if short:
            yield (
                f"temporal consistency of {len(short)} {name} clips, such as '{short[0]}': fewer than "
                f"{_LEAST_TEMPORAL} frames"
            )
