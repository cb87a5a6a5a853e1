"""Options that several commands share: what a clip is made with, and on what."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError

DTYPES = ("float32", "float16", "bfloat16")
NO_GRAPHS = "launch every step anew instead of replaying a CUDA graph"
MOTION_SCORES = {"low": 1, "medium": 10, "high": 50, "extreme": 100}


def add_clip_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides how clips are made and what they show beside the prompt."""
    parser.add_argument("--model", type=Path, help="folder of released or converted weights (default: the demo model)")
    parser.add_argument("--negative", help="what the video should not show (release 1.0)")
    parser.add_argument("--image", type=Path, help="picture to start from (release 1.1)")
    parser.add_argument(
        "--fps",
        choices=("low", "medium", "high"),
        help="2, 8 or 30 frames per second: 0, 1 or 2 interpolation passes (default: low, demo high)",
    )
    parser.add_argument("--steps", type=int, help="sampling steps, 1..1000 (default 50; interpolation of 1.1: 10)")
    parser.add_argument("--guidance", type=float, help="text guidance w of (w+1)*cond - w*uncond (default 5, demo 0.2)")
    parser.add_argument("--image-guidance", type=float, default=2.0, help="weight of the first frame, 1.1 (default 2)")
    parser.add_argument("--interpolation-guidance", type=float, help="w of the interpolation (default 0.25; 1.1: 0.5)")
    parser.add_argument("--motion", choices=MOTION_SCORES, default="medium", help="amount of motion, 1.1")
    parser.add_argument("--keyframes", type=int, help="keyframes (default: what the model was trained on)")
    parser.add_argument("--seed", type=int, default=0, help="0..2**63-1; the same seed gives the same clip (default 0)")
    parser.add_argument("--width", type=int, help="pixels, a multiple of 64 (demo: 8; default 512, demo 64)")
    parser.add_argument("--height", type=int, help="pixels, a multiple of 64 (demo: 8; default 512, demo 64)")
    parser.add_argument("--device", help="torch device (default: cuda where there is one, else cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the U-Nets (default: float16 on cuda, else float32)")
    parser.add_argument("--decoder", choices=("image", "video"), help="MoVQ that makes the frames (default: released)")
    parser.add_argument(
        "--mend",
        action="store_true",
        help="mend the releases' mistakes that show: seams, black bars, 8-bit steps, uniform noise",
    )
    parser.add_argument(
        "--low-memory",
        action="store_true",
        help="run guidance branches one by one and free every network after its stage",
    )
    parser.add_argument(
        "--strict", action="store_true", help="keep the networks as released instead of folding linear layers"
    )
    parser.add_argument("--no-graphs", action="store_true", help=NO_GRAPHS)


def clip_settings(options: argparse.Namespace) -> Any:
    """Return the settings that the options name."""
    from ..pipeline.settings import Settings

    return Settings(
        fps=options.fps, width=options.width, height=options.height, steps=options.steps,
        guidance_scale=options.guidance, image_guidance=options.image_guidance,
        interpolation_guidance=options.interpolation_guidance, motion_score=MOTION_SCORES[options.motion],
        num_frames=options.keyframes, seed=options.seed, is_mended=options.mend,
        is_stacked=False if options.low_memory else None,
    )  # fmt: skip


def usable_device(name: str | None) -> str:
    """Return the torch device asked for, or the best there is.

    Raises:
        InputError: if torch cannot use it.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"expected a device that torch can use, got '{name}': try cpu") from error
    return name
