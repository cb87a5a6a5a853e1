"""Options of ``generate`` about steps and solvers."""

import argparse
from typing import Any

from ..stages.presets import PLANS, PRESETS
from ..stages.releases import V10, V11


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    parser.add_argument(
        "--preset", choices=PRESETS,
        help="steps and solvers of both stages, as released or fewer (default released); what follows overrides it",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=int,
        help=f"keyframe steps, 1..1000 (default {V10.keyframe.steps}; with release 1.0 as released, of the "
        "interpolation too)",
    )  # fmt: skip
    steps = f"default {V10.interpolation.steps}; 1.1: {V11.interpolation.steps}"
    parser.add_argument("--interpolation-steps", type=int, help=f"steps of each pass, 1..1000 ({steps})")
    parser.add_argument("--solver", choices=PLANS, help="solver of the keyframes")
    parser.add_argument("--interpolation-solver", choices=PLANS, help="solver of the interpolation")
    parser.add_argument(
        "--decoder-dtype", choices=("float32", "16-bit"),
        help="what MoVQ makes frames in: float32 as released, or 16-bit where the device is faster in it and a first "
        "frame is within 58.9 dB, what 8 bits round away (default: released float32, other presets 16-bit)",
    )  # fmt: skip
    parser.add_argument(
        "--guide-between", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="guide keyframes only at these ratios of noise to signal, such as 0.3 5 (default: all)",
    )  # fmt: skip


def chosen_sampling(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the options say, as settings."""
    names = ("preset", "steps", "interpolation_steps", "solver", "interpolation_solver")
    guided = None if options.guide_between is None else tuple(options.guide_between)
    narrow = None if options.decoder_dtype is None else options.decoder_dtype == "16-bit"
    return {name: getattr(options, name) for name in names} | {"guided": guided, "narrow_decoder": narrow}
