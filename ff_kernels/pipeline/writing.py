"""A prompt to a video file: one path for the command line and for batches, so that both write the same bytes."""

from pathlib import Path
from typing import Any

from ..media.video import write_frames
from ..runtime.clock import Clock, Progress
from .clip import LatentClip
from .pipeline import Pipeline
from .settings import Settings


def write_clip(
    pipeline: Pipeline,
    prompt: str,
    settings: Settings,
    path: Path,
    *,
    decoder: str | None = None,
    progress: Progress | None = None,
    **inputs: Any,
) -> tuple[LatentClip, list[Path]]:
    """Make one clip and write it as it is decoded; return its latents with the seconds of all stages, and its files.

    Args:
        pipeline: the model.
        prompt: what the video shows, in English.
        settings: resolved settings.
        path: see ``write_frames``.
        decoder: see ``Pipeline.sample``.
        progress: see ``Pipeline.sample``; decoding is a stage too.
        **inputs: "negative", "picture", "texts" of ``Pipeline.sample``.

    Raises:
        InputError: for settings or inputs that the model does not take.
        CheckpointError: if the folder lacks a file that is needed.
        OutputError: if writing fails; no file of this call is left.
    """
    clip = pipeline.sample(prompt, settings, decoder=decoder, progress=progress, **inputs)
    clock = Clock(progress, clip.seconds)
    # Opened before the output is: what goes wrong inside of that counts as a failure to write.
    pipeline.decoder(len(clip.latents), settings, decoder)
    with clock("decoding"):
        # Straight to the file: the frames of a long clip would fill the memory that its networks leave.
        chunks = pipeline.decode_chunks(clip.latents, settings, decoder=decoder, should_stop=clock.count)
        written = write_frames(chunks, path, clip.fps, count=len(clip.latents))
    return clip, written
