"""Clips on disk: videos and PNG sequences, found by name and read a few frames at a time."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import Interpolation
from torch import Tensor

from ..errors import InputError
from .pictures import read_image

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".mkv", ".mov", ".avi")
CHUNK_FRAMES = 8
_NUMBERED = re.compile(r"(?P<name>.*?)[_-]?(?P<number>\d+)")
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class ClipFiles:
    """A clip on disk.

    Attributes:
        name: by which clips of two folders are paired.
        files: one video, or the PNG frames in order.
    """

    name: str
    files: tuple[Path, ...]

    def chunks(self, size: int = CHUNK_FRAMES) -> Iterator[Tensor]:
        """Yield ``[n, 3, H, W]`` float32 RGB in 0..1, ``n`` = ``size`` but for the last.

        Raises:
            InputError: if a file is missing, damaged or has no frames, or frames change their size.
        """
        held: list[Tensor] = []
        shape = None
        for frame in self._frames():
            shape = shape or frame.shape
            if frame.shape != shape:
                raise InputError(
                    f"expected frames of one size in '{self.files[0]}', got {shape[2]} x {shape[1]} and "
                    f"{frame.shape[2]} x {frame.shape[1]}: write the clip again"
                )
            held.append(frame)
            if len(held) == size:
                yield torch.stack(held)
                held = []
        if shape is None:
            raise InputError(f"expected frames in '{self.files[0]}', found none: write the clip again")
        if held:
            yield torch.stack(held)

    def rate(self) -> float | None:
        """Return the frames per second that a video says of itself; None for PNG frames and where it says none.

        Raises:
            InputError: if the video cannot be opened.
        """
        if self.files[0].suffix.lower() == ".png":
            return None
        try:
            with av.open(str(self.files[0])) as container:
                streams = container.streams.video
                return float(streams[0].average_rate) if streams and streams[0].average_rate else None
        except FFmpegError as error:
            raise _unreadable(self.files[0], error) from error

    def _frames(self) -> Iterator[Tensor]:
        if self.files[0].suffix.lower() == ".png":
            for path in self.files:
                yield read_image(path).permute(2, 0, 1)
        else:
            yield from _video_frames(self.files[0])


def _video_frames(path: Path) -> Iterator[Tensor]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"expected a video in '{path}', found no video stream: check the file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                pixels = frame.to_ndarray(format="rgb24", interpolation=_SCALING)
                # Phones store portrait clips lying, with a turn in quarter circles.
                pixels = np.rot90(pixels, round(frame.rotation / 90)).copy()
                yield torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    except FFmpegError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: FFmpegError) -> InputError:
    return InputError(f"cannot read the video '{path}' ({error.strerror}): check the file")


def find_clips(path: str | Path) -> dict[str, ClipFiles]:
    """Return the clips at a path, by name and in order of names.

    Args:
        path: a video; or a folder of videos (named by their stems), of PNG sequences ``NAME_0000.png`` and on (named
            NAME), and of sub-folders with such frames (named as the sub-folder). Other files are no clips.

    Raises:
        InputError: if nothing is there, two clips share a name, a sequence has a gap or a PNG has no number.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise InputError(
                f"expected a video ({', '.join(VIDEO_SUFFIXES)}) or a folder, got '{path}': name a sequence's folder"
            )
        return {path.stem: ClipFiles(path.stem, (path,))}
    if not path.is_dir():
        raise InputError(f"expected a video or a folder of clips at '{path}', found nothing: check the path")
    found = _clips_in(path)
    for folder in sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith(".")):
        inner = _clips_in(folder)
        if any(clip.files[0].suffix.lower() in VIDEO_SUFFIXES for clip in inner):
            raise InputError(f"expected PNG frames in the sub-folder '{folder}', found videos: name that folder itself")
        found += [ClipFiles(folder.name if len(inner) == 1 else f"{folder.name}/{c.name}", c.files) for c in inner]
    if not found:
        raise InputError(f"expected videos or PNG sequences in '{path}', found none: check the folder")
    found.sort(key=lambda clip: clip.name)
    for first, second in pairwise(found):
        if first.name == second.name:
            raise InputError(
                f"expected one clip named '{first.name}' in '{path}', found '{first.files[0].name}' and "
                f"'{second.files[0].name}': rename one"
            )
    return {clip.name: clip for clip in found}


def _clips_in(folder: Path) -> list[ClipFiles]:
    files = sorted(item for item in folder.iterdir() if item.is_file() and not item.name.startswith("."))
    clips = [ClipFiles(file.stem, (file,)) for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    sequences: dict[str, dict[int, Path]] = {}
    for file in files:
        if file.suffix.lower() == ".png":
            match = _NUMBERED.fullmatch(file.stem)
            if match is None:
                raise InputError(f"expected frames named NAME_0000.png, got '{file}': number it or move it away")
            numbers = sequences.setdefault(match["name"] or folder.name, {})
            if int(match["number"]) in numbers:
                raise InputError(
                    f"expected one frame {int(match['number'])} per sequence, got '{file}' too: remove one"
                )
            numbers[int(match["number"])] = file
    for name, numbers in sequences.items():
        order = sorted(numbers)
        gap = next((a + 1 for a, b in pairwise(order) if b != a + 1), None)
        if gap is not None:
            raise InputError(
                f"expected every frame of '{name}' in '{folder}', found none of number {gap}: write it again"
            )
        clips.append(ClipFiles(name, tuple(numbers[i] for i in order)))
    return clips


def pair_clips(reference: dict[str, ClipFiles], clips: dict[str, ClipFiles]) -> list[tuple[ClipFiles, ClipFiles]]:
    """Return the clips of two sets paired by name; one clip and one clip are a pair whatever their names.

    Raises:
        InputError: if a clip has no partner.
    """
    if len(reference) == len(clips) == 1:
        return [(*reference.values(), *clips.values())]
    for alone, name in ((reference.keys() - clips, "reference"), (clips.keys() - reference, "evaluated folder")):
        if alone:
            raise InputError(
                f"expected equal names in both folders, found '{min(alone)}' ({len(alone)} in all) only in the {name}"
                ": rename it, complete the other one or compare without pairs", setting="is_paired",
            )  # fmt: skip
    return [(reference[name], clips[name]) for name in reference]
