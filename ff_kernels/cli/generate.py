"""``generate``: a video from a prompt."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..stages.releases import DEMO_GUIDANCE_SCALE, MOTION_SCORES, V10, V11
from . import options as shared
from .console import say
from .files import check_kept, check_picture, frame_names, place_of
from .progress import Bars
from .sampling import add_sampling_options, chosen_sampling

_SWITCHES = {
    "--mend": "mend the releases' mistakes that show: seams, black bars, 8-bit steps, uniform noise, cut negatives",
    "--low-memory": "the smallest plan: branches one by one, weights pass through, every network freed after its stage",
    "--strict": "keep the networks as released instead of folding linear layers",
    "--no-graphs": shared.NO_GRAPHS,
}


def add_generate(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("generate", help="make a video from a prompt")
    parser.add_argument("prompt", help="what the video shows, in English")
    what = "file to write: .mp4, .webm, .gif, or .png for a numbered sequence"
    parser.add_argument("-o", "--output", type=Path, required=True, help=what)
    add_clip_options(parser)
    shared.add_quant(parser)
    shared.add_text_encoder(parser)
    what = "folder in which encoded prompts are kept (default: the user's cache folder; the demo model keeps none)"
    parser.add_argument("--prompt-cache", type=Path, metavar="DIR", help=what)
    what = "encode the prompt anew although it was encoded before"
    parser.add_argument("--no-prompt-cache", action="store_true", help=what)
    parser.add_argument("--storyboard", type=Path, help="write the keyframes as one contact sheet (.png, .jpg)")
    parser.set_defaults(run=run_generate)


def add_clip_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides how clips are made and what they show beside the prompt."""
    parser.add_argument("--model", type=Path, help="folder of released or converted weights (default: the demo model)")
    what = "add a LoRA to the U-Net that it was trained for; may be given several times"
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help=what)
    parser.add_argument("--negative", help="what the video should not show (release 1.0)")
    parser.add_argument("--image", type=Path, help="picture to start from (release 1.1)")
    what = "2, 8 or 30 frames per second: 0, 1 or 2 interpolation passes (default: low, demo high)"
    parser.add_argument("--fps", choices=("low", "medium", "high"), help=what)
    add_sampling_options(parser)
    for name, kind, what in (
        ("--guidance", float, "text guidance w of (w+1)*cond - w*uncond "
         f"(default {V10.keyframe.guidance_scale:g}, demo {DEMO_GUIDANCE_SCALE:g})"),
        ("--interpolation-guidance", float, "w of the interpolation (default "
         f"{V10.interpolation.guidance_scale:g}; 1.1: {V11.interpolation.guidance_scale:g})"),
    ):  # fmt: skip
        parser.add_argument(name, type=kind, help=what)
    what = f"weight of the first frame, 1.1 (default {V11.image_guidance:g})"
    parser.add_argument("--image-guidance", type=float, default=V11.image_guidance, help=what)
    parser.add_argument("--motion", choices=MOTION_SCORES, default="medium", help="amount of motion, 1.1")
    parser.add_argument("--keyframes", type=int, help="keyframes (default: what the model was trained on)")
    parser.add_argument("--seed", type=int, default=0, help="0..2**63-1; the same seed gives the same clip (default 0)")
    parser.add_argument("--width", type=int, help="pixels, a multiple of 64 (demo: 8; default 512, demo 64)")
    parser.add_argument("--height", type=int, help="pixels, a multiple of 64 (demo: 8; default 512, demo 64)")
    parser.add_argument("--device", help=shared.DEVICE_HELP)
    what = "dtype of the U-Nets (default: float16 on cards that have it)"
    parser.add_argument("--dtype", choices=shared.DTYPES, help=what)
    parser.add_argument("--decoder", choices=("image", "video"), help="MoVQ that makes the frames (default: released)")
    for name, what in _SWITCHES.items():
        parser.add_argument(name, action="store_true", help=what)
    shared.add_budget(parser)


def run_generate(options: argparse.Namespace) -> int:
    """Make a video file."""
    from ..media.pictures import read_image, write_image
    from ..media.sheet import contact_sheet, sheet_size
    from ..media.video import check_output
    from ..pipeline.planning import plan_run
    from ..pipeline.prompts import require_prompts
    from ..pipeline.settings import describe_sampling, sampling_warnings
    from ..pipeline.writing import write_clip

    check_output(options.output)
    read = [path for path in (options.image, options.model) if path is not None]
    frames = frame_names(options.output)
    if frames is None:
        check_kept(options.output, "output", read)
    elif options.image is not None and frames.fullmatch(str(place_of(options.image))):
        raise InputError(f"the frames would overwrite the picture '{options.image}': choose another output")
    if options.storyboard is not None:
        check_picture(options.storyboard, "storyboard")
        check_kept(options.storyboard, "storyboard", [*read, *([options.output] if frames is None else [])])
        if frames is not None and frames.fullmatch(str(place_of(options.storyboard))):
            raise InputError(f"the storyboard would overwrite the frame '{options.storyboard}': choose another name")
    require_prompts([options.prompt, *filter(None, [options.negative])])
    picture = None if options.image is None else read_image(options.image)
    pipeline = _open_pipeline(options)
    settings = pipeline.resolve(clip_settings(options))
    for text in sampling_warnings(settings, pipeline.release):
        print(f"warning: {text}", file=sys.stderr)
    if options.storyboard is not None:
        sheet_size(settings.keyframes, settings.height, settings.width, suffix=options.storyboard.suffix)
    decoder = {None: None, "image": "movq", "video": "video_movq"}[options.decoder]
    planned = plan_run(pipeline, settings, decoder=decoder, draws_picture=picture is None)
    print(f"plan: {'; '.join(stage.phrase() for stage in planned)}", file=sys.stderr)
    with Bars() as bars:
        clip, written = write_clip(
            pipeline, options.prompt, settings, options.output, decoder=decoder, progress=bars,
            negative=options.negative, picture=picture,
        )  # fmt: skip
    if options.storyboard is not None:
        keyframes = pipeline.decode(clip.keyframes, settings, decoder=decoder)
        spacing = (len(clip.latents) - 1) / max(1, len(keyframes) - 1) / clip.fps
        write_image(contact_sheet(keyframes, times=[i * spacing for i in range(len(keyframes))]), options.storyboard)
    for stage, report in pipeline.networks.reports.items():
        print(f"{stage}: {report.phrase()}", file=sys.stderr)
    where = written[0] if len(written) == 1 else f"{written[0]} .. {written[-1].name}"
    say(
        f"{where}: {len(clip.latents)} frames of {settings.width} x {settings.height} at {clip.fps:g} frames per "
        f"second, seed {settings.seed}, {describe_sampling(settings)}"
    )
    say(
        ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in clip.seconds.items())
        + f", {sum(clip.seconds.values()):.1f} s in all; peak memory {_peak_memory(pipeline.device)}"
    )
    return 0


def _open_pipeline(options: argparse.Namespace) -> Any:
    from ..checkpoints.lora import parse_choice
    from ..demo.model import demo_pipeline
    from ..pipeline.pipeline import Pipeline
    from ..pipeline.prompt_cache import default_folder
    from ..runtime.devices import choose_device, choose_dtype, name_of
    from ..runtime.plan import Budget

    device = choose_device(options.device)
    dtype = choose_dtype(device, options.dtype)
    print(f"running on {device} ({name_of(device)}) in {str(dtype).removeprefix('torch.')}", file=sys.stderr)
    choices = {
        "device": device, "dtype": dtype, "keeps_networks": not options.low_memory,
        "parity": "strict" if options.strict else "fast", "uses_graphs": not options.no_graphs,
        "budget": Budget(options.vram, options.ram, options.low_memory), "rounds": options.quant == "int8",
        "loras": [parse_choice(text) for text in options.lora],
    }  # fmt: skip
    if not options.no_prompt_cache:
        # The demo's encoder is as quick as its cache.
        choices["prompt_cache"] = options.prompt_cache or (default_folder() if options.model is not None else None)
    if options.model is not None:
        return Pipeline.from_folder(options.model, text_encoder=options.text_encoder, **choices)
    if options.text_encoder is not None:
        raise InputError("expected --text-encoder with --model, got it for the demo, which has one of its own: add it")
    print(
        "no --model given: using the demo model, which knows one moving shape on a plain background, such as "
        "'a large purple triangle moves up on a white background'",
        file=sys.stderr,
    )
    return demo_pipeline(**choices)


def clip_settings(options: argparse.Namespace) -> Any:
    """Return the settings that the options name."""
    from ..pipeline.settings import Settings

    return Settings(
        fps=options.fps, width=options.width, height=options.height, **chosen_sampling(options),
        guidance_scale=options.guidance, image_guidance=options.image_guidance,
        interpolation_guidance=options.interpolation_guidance, motion_score=MOTION_SCORES[options.motion],
        keyframes=options.keyframes, seed=options.seed, is_mended=options.mend,
        is_stacked=False if options.low_memory else None,
    )  # fmt: skip


def _peak_memory(device: Any) -> str:
    from ..runtime.devices import peak_bytes

    peak = peak_bytes(device)
    if peak is not None:
        return f"{peak / 2**30:.2f} GiB on the device"
    try:
        import resource
    except ImportError:
        return "unknown on this system"
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"
