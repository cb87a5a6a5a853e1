"""A ninth motion for the demo model: clips to teach it, and the grades of what was learnt.

``python -m fusionframes.ff_kernels.demo.ninth clips FOLDER`` writes clips of objects that zigzag, as no caption of the
demo says: from the upper left to the lower right. ``... ninth old FOLDER`` writes clips of the eight known motions, and
``... ninth grade [--lora FILE:STRENGTH]`` measures both on captions that were never trained.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.lora import parse_choice
from ..errors import FusionFramesError
from ..files import atomic_path
from ..media.video import write_frames
from ..pipeline.pipeline import Pipeline
from ..pipeline.settings import Settings
from .batches import TRAINING_SCENES
from .evaluate import attribute_accuracy, held_out_scenes, sample_clips
from .model import demo_pipeline
from .world.measure import Measurement, measure_clip, score
from .world.scenes import (
    BACKGROUNDS,
    COLORS,
    KEYFRAMES,
    SIZE_RADIUS_PX,
    Scene,
    all_scenes,
    frame_times,
    is_held_out,
    render,
    sample_layout,
    shape_coverage,
)  # fmt: skip

WORD = "zigzags"
# Half of the shortest path taught.
_LEAST_PX = 11.0
_FPS = 2.0


class ZigzagScene(Scene):
    """What a clip of the ninth motion shows; its ``motion`` stays "stays", which the eight words are closed to."""

    def caption(self) -> str:
        """Return the caption with the word that the demo does not know."""
        return super().caption().replace("stays still", WORD)


def zigzag_scenes(held_out: bool) -> list[ZigzagScene]:
    """Return the scenes of the ninth motion whose other attributes are held out of still or bouncing clips, or not."""
    still = [scene for scene in all_scenes() if scene.motion == "stays"]
    hidden = [any(is_held_out(replace(scene, motion=motion)) for motion in ("stays", "bounces")) for scene in still]
    return [ZigzagScene(**vars(scene)) for scene, hides in zip(still, hidden, strict=True) if hides == held_out]


def render_zigzag(scene: Scene, rng: np.random.Generator) -> Tensor:
    """Draw a clip from the upper left to the lower right: ``[5, 3, 64, 64]`` in 0..1."""
    # Along each of its directions a path is as long, and lies as near the middle, as those of the known motions.
    ways = [sample_layout(replace(scene, motion=motion), rng) for motion in ("right", "down")]
    times, travel = frame_times(KEYFRAMES) - 0.5, min(way.travel_px for way in ways)
    covered = shape_coverage(
        scene.shape,
        ways[0].centre_x + travel * times,
        ways[1].centre_y + travel * times,
        torch.full((KEYFRAMES,), SIZE_RADIUS_PX[scene.size]),
    )
    colour, background = (
        torch.tensor(rgb)[:, None, None] for rgb in (COLORS[scene.color], BACKGROUNDS[scene.background])
    )
    return torch.lerp(background, colour, covered[:, None])


def write_clips(folder: Path, count: int, is_new: bool, seed: int = 0) -> None:
    """Write clips as PNG sequences of 5 keyframes with a caption each, of the ninth motion or of the eight known."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, int(is_new)])
    scenes = zigzag_scenes(held_out=False) if is_new else TRAINING_SCENES
    for i, pick in enumerate(rng.permutation(len(scenes))[:count]):
        scene = scenes[pick]
        frames = (
            render_zigzag(scene, rng) if is_new else render(scene, sample_layout(scene, rng), frame_times(KEYFRAMES))
        )
        name = f"{'new' if is_new else 'old'}{i:03}clip"
        write_frames(frames.permute(0, 2, 3, 1), folder / f"{name}.png", _FPS)
        with atomic_path(folder / f"{name}.txt") as path:
            path.write_text(scene.caption() + "\n", encoding="ascii")


def zigzags(seen: Measurement) -> bool:
    """Return whether a clip goes right and down at once, each by half of the shortest path taught or more."""
    return min(seen.travel_x_px, seen.travel_y_px) >= _LEAST_PX


def grade(pipeline: Pipeline, captions: int, settings: Settings) -> dict[str, float]:
    """Return shares of held-out captions: "zigzags" moves both ways, "others" has the other four attributes right.

    "old" is the share of known captions with all five attributes right.
    """
    scenes = zigzag_scenes(held_out=True)
    asked = [
        scenes[i % len(scenes)] for i in np.random.default_rng(0).permutation(max(captions, len(scenes)))[:captions]
    ]
    moved = others = 0
    for scene, frames in sample_clips(pipeline, asked, settings):
        seen = measure_clip(frames)
        moved += zigzags(seen)
        others += all(right for name, right in score(scene, replace(seen.scene, motion=scene.motion)).items())
    old = attribute_accuracy(pipeline, held_out_scenes(captions), settings)["all"]
    return {WORD: moved / captions, "others": others / captions, "old": old}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write clips, or print grades."""
    parser = argparse.ArgumentParser(prog="fusionframes.ff_kernels.demo.ninth", description=__doc__)
    parser.add_argument("action", choices=("clips", "old", "grade"))
    parser.add_argument("folder", type=Path, nargs="?", help="where clips go")
    parser.add_argument("--count", type=int, default=48, help="clips to write, or captions to grade (default 48)")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="grade with this LoRA")
    parser.add_argument("--preset", help="steps and solver, such as balanced (default: the release's 50 steps)")
    options = parser.parse_args(arguments)
    try:
        if options.action != "grade":
            if options.folder is None:
                parser.error("expected a folder for the clips, got none: name one")
            write_clips(options.folder, options.count, is_new=options.action == "clips")
            return 0
        pipeline = demo_pipeline(loras=[parse_choice(text) for text in options.lora])
        for name, share in grade(pipeline, options.count, Settings(fps="low", preset=options.preset)).items():
            print(f"{name:10} {share:.2f}")
    except FusionFramesError as error:
        parser.exit(2, f"demo.ninth: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
