"""Clips with captions to cached latents and contexts: what fine-tuning reads.

F frames of a window, h and w latent sides, D context width.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import FusionFramesError, InputError
from ..files import atomic_path
from ..media.clips import ClipFiles, find_clips
from ..media.pictures import fit_covering

# Sides of a bucket in parts of each other; a clip goes where its own are nearest.
ASPECTS = (1.0, 4 / 3, 3 / 4, 16 / 9, 9 / 16)
_NAMED = 5


@dataclass(frozen=True)
class TrainingClip:
    """A clip to learn from.

    Attributes:
        files: the video or its PNG frames.
        caption: what it shows.
        motion_score: 1 (still) .. 100, which release 1.1 is told.
    """

    files: ClipFiles
    caption: str
    motion_score: int


@dataclass(frozen=True)
class Windows:
    """How clips are cut.

    Attributes:
        frames: F of a window.
        rates: name of a rate to its frames per second; a clip gives windows at each of them.
        area: pixels of a bucket, about.
        multiple: sides are multiples of this.
        source_fps: rate of clips that do not say their own, PNG sequences.
    """

    frames: int
    rates: Mapping[str, float]
    area: int
    multiple: int
    source_fps: float = 24.0

    def bucket(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the bucket that a clip of these sides goes to."""
        aspect = min(ASPECTS, key=lambda aspect: abs(math.log(aspect * height / width)))
        sides = math.sqrt(self.area * aspect), math.sqrt(self.area / aspect)
        return tuple(max(1, round(side / self.multiple)) * self.multiple for side in sides)

    def spacing(self, name: str, fps: float) -> int:
        """Return every which frame of a clip is taken: every 12th of 24 frames per second for keyframes."""
        return max(1, round(fps / self.rates[name]))


def find_training_clips(path: Path, default_score: int) -> list[TrainingClip]:
    """Return the clips of a folder, each with its caption in ``NAME.txt``, or of a jsonl of ``video`` and ``caption``.

    Raises:
        InputError: naming the clips that have no caption, or lines that are not understood.
    """
    if path.suffix.lower() == ".jsonl":
        return [_from_line(path, number, line, default_score) for number, line in _lines(path)]
    found, bare = [], []
    for name, files in find_clips(path).items():
        text = files.files[0].with_suffix(".txt") if len(files.files) == 1 else path / f"{name}.txt"
        caption = text.read_text(encoding="utf-8").strip() if text.is_file() else ""
        found.append(TrainingClip(files, caption, default_score))
        bare += [] if caption else [f"'{text.name}'"]
    if bare:
        raise InputError(
            f"expected a caption for each of the {len(found)} clips in '{path}', found none for {len(bare)}: write "
            f"{', '.join(bare[:_NAMED])}"
        )
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"expected a list of clips in '{path}', found none that can be read: check the path"
        ) from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"expected one clip per line in '{path}', found an empty file: write video and caption")
    yield from lines


def _from_line(path: Path, number: int, line: str, default_score: int) -> TrainingClip:
    try:
        row = json.loads(line)
        video, caption, score = row["video"], row["caption"], row.get("motion_score", default_score)
        if not (isinstance(video, str) and isinstance(caption, str) and caption.strip() and type(score) is int):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'expected {{"video": "FILE", "caption": "TEXT"}} in line {number} of \'{path}\', got '
            f"{line.strip()[:60]!r}: mend that line"
        ) from error
    (files,) = list(find_clips(path.parent / video).values())[:1]
    return TrainingClip(files, caption.strip(), score)


def read_windows(clip: TrainingClip, windows: Windows) -> dict[str, Tensor]:
    """Return what the network is to see of a clip: per rate ``[windows, F, 3, H, W]`` in 0..1, one after the other.

    Raises:
        InputError: if the clip cannot be read, or is too short for a window at any rate.
    """
    fps = clip.files.rate() or windows.source_fps
    spacings = {name: windows.spacing(name, fps) for name in windows.rates}
    kept: dict[str, list[Tensor]] = {name: [] for name in spacings}
    size, count = None, 0
    for chunk in clip.files.chunks():
        size = size or windows.bucket(chunk.shape[3], chunk.shape[2])
        for frame in chunk:
            names = [name for name, spacing in spacings.items() if count % spacing == 0]
            if names:
                fitted = fit_covering(frame.permute(1, 2, 0), *size).permute(2, 0, 1)
                for name in names:
                    kept[name].append(fitted)
            count += 1
    short = {name: (windows.frames - 1) * spacings[name] + 1 for name in kept if len(kept[name]) < windows.frames}
    if short:
        raise InputError(
            f"expected {max(short.values())} frames or more at {fps:g} frames per second, found {count}: take a longer "
            "clip"
        )
    whole = {name: len(frames) // windows.frames * windows.frames for name, frames in kept.items()}
    return {name: torch.stack(kept[name][: whole[name]]).unflatten(0, (-1, windows.frames)) for name in kept}


def cache_latents(
    clips: Sequence[TrainingClip], windows: Windows, folder: Path, source: str, encode: Callable[[Tensor], Tensor]
) -> list[Path]:
    """Return one file of latents per clip, encoding only those that are not in the folder under their key.

    Args:
        clips: what to read.
        windows: how to cut it.
        folder: of the cache.
        source: names the MoVQ.
        encode: ``[n, 3, H, W]`` in -1..1 to ``[n, 4, h, w]``.

    Raises:
        InputError: naming the clips that are too short or cannot be read.
    """
    paths, problems = [], []
    for clip in clips:
        try:
            path = folder / f"{_key(clip, windows, source)}.safetensors"
            paths.append(path)
            if _opens(path):
                continue
            frames = read_windows(clip, windows)
        except FusionFramesError as error:
            problems.append(f"'{clip.files.name}': {error}")
            continue
        latents = {
            name: torch.stack([encode(window * 2 - 1) for window in cut]).half().cpu().contiguous()
            for name, cut in frames.items()
        }
        _write(path, latents)
    if problems:
        more = f" (and {len(problems) - _NAMED} more)" if len(problems) > _NAMED else ""
        raise InputError(f"{len(problems)} of {len(clips)} clips cannot be used: {'; '.join(problems[:_NAMED])}{more}")
    return paths


def cache_contexts(
    captions: Sequence[str], folder: Path, source: str, encode: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """Return the context ``[tokens, D]`` of every caption, encoding only those that are not in the folder.

    Args:
        captions: texts, repeated or not.
        folder: of the cache.
        source: names text encoder, projection and tokenizer.
        encode: a caption to its context.
    """
    out = {}
    for caption in dict.fromkeys(captions):
        path = folder / f"{hashlib.sha256(f'{source} {caption}'.encode()).hexdigest()[:16]}.safetensors"
        if not _opens(path):
            _write(path, {"context": encode(caption).cpu().contiguous()})
        out[caption] = load_file(path)["context"]
    return out


def _key(clip: TrainingClip, windows: Windows, source: str) -> str:
    digest = hashlib.sha256(
        f"{source} {windows.frames} {dict(windows.rates)} {windows.area} {windows.multiple} ".encode()
    )
    if clip.files.rate() is None:
        digest.update(str(windows.source_fps).encode())
    for path in clip.files.files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"cannot read '{path}': check the file") from error
    return digest.hexdigest()[:16]


def _opens(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        load_file(path)
    except (SafetensorError, OSError):
        return False
    return True


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
