"""The command line ``fusionframes``: generate, verify, convert, info, evaluate, train, bench."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import FusionFramesError, InputError
from .progress import Bars
from .train import add_train

EXIT_FAILED, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 130
DTYPES = ("float32", "float16", "bfloat16")
_DEVICE_HELP = "torch device of the networks (default: the first of cuda, mps, xpu, npu, cpu that there is)"
_NO_GRAPHS = "launch every step anew instead of replaying a CUDA graph"
MOTION_SCORES = {"low": 1, "medium": 10, "high": 50, "extreme": 100}


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, as every other error."""

    def error(self, message: str) -> None:
        raise InputError(f"{message}: see '{self.prog} --help'")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = _Parser(prog="fusionframes", description="FusionFrames: two-stage text-to-video.")
    parser.add_argument("--version", action="version", version=f"fusionframes {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_generate(commands.add_parser("generate", help="make a video from a prompt"))
    verify = commands.add_parser("verify", help="check the engine against reference cases")
    verify.add_argument("folder", type=Path, help="folder of NAME.json beside NAME.safetensors")
    verify.set_defaults(run=run_verify)
    convert = commands.add_parser("convert", help="write released weights as one safetensors file")
    convert.add_argument("source", type=Path, help=".pt, safetensors, an index of shards, or a folder of them")
    convert.add_argument("target", type=Path, help="file to write, ending in .safetensors")
    convert.add_argument("--dtype", choices=DTYPES, help="dtype of the tensors (default: as stored)")
    convert.add_argument("--merge", action="append", default=[], metavar="LORA[:STRENGTH]", help="add a LoRA")
    _add_overrides(convert)
    convert.set_defaults(run=run_convert)
    info = commands.add_parser("info", help="say what a weights file is and needs")
    info.add_argument("file", type=Path, nargs="?")
    info.add_argument("--backends", action="store_true", help="say which implementation may serve each operation")
    info.add_argument(
        "--variant", nargs="?", const="all", metavar="NAME", help="count a temporal variant of the paper, or all four"
    )
    _add_overrides(info)
    info.set_defaults(run=run_info)
    _add_evaluate(commands.add_parser("evaluate", help="measure clips against reference clips"))
    add_train(commands.add_parser("train", help="teach a model your clips: a LoRA or a temporal fine-tune"))
    _add_bench(commands.add_parser("bench", help="time the engine against the release's formulation"))
    return parser


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workload",
        action="append",
        metavar="NAME",
        help="keyframes, interpolation or decode with -cpu, -512 or -640x384 (default: those for this machine); "
        "may be given several times",
    )
    parser.add_argument("--repeats", type=int, default=3, help="calls behind each median (default 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--history", type=Path, metavar="FILE", help="append one line of CSV per workload")
    record = "run nothing: count launches, FLOPs, bytes and memory of the full sizes beside the targets"
    parser.add_argument("--record", action="store_true", help=record)
    parser.add_argument("--no-graphs", action="store_true", help=_NO_GRAPHS)
    parser.set_defaults(run=run_bench)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--head-dim", type=int, help="width of an attention head (default 64 or the file's metadata)")
    parser.add_argument("--groups", type=int, help="groups of the norms (default 32 or the file's metadata)")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    what = "a video, or a folder of videos or PNG sequences"
    parser.add_argument("reference", type=Path, metavar="REF", help=f"true clips: {what}")
    parser.add_argument("folder", type=Path, metavar="DIR", help="clips to judge: the same, paired with REF by name")
    runs = "torchscript runs its own code"
    parser.add_argument("--lpips", type=Path, help=f"network for LPIPS: safetensors or torchscript ({runs})")
    parser.add_argument("--i3d", type=Path, help=f"network for FVD: torchscript ({runs}), clips of 16 frames")
    parser.add_argument("--inception", type=Path, help=f"network for IS: torchscript ({runs}), clips of 16 frames")
    parser.add_argument("--splits", type=int, default=10, help="splits of the IS, 1..clips (default 10)")
    parser.add_argument("--unpaired", action="store_true", help="any clips: only FVD, IS and temporal consistency")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--plot", type=Path, help="write the curves over frames (.png, .jpg, .webp)")
    parser.add_argument("--device", help=_DEVICE_HELP)
    parser.set_defaults(run=run_evaluate)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what the video shows, in English")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="file to write: .mp4, .webm, .gif, or .png for a numbered sequence",
    )
    parser.add_argument("--model", type=Path, help="folder of released or converted weights (default: the demo model)")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="add a LoRA; may be given several times"
    )
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
    parser.add_argument("--device", help=_DEVICE_HELP)
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the U-Nets (default: float16 on cards that have it)")
    parser.add_argument("--decoder", choices=("image", "video"), help="MoVQ that makes the frames (default: released)")
    mend = "mend the releases' mistakes that show: seams, black bars, 8-bit steps, uniform noise"
    parser.add_argument("--mend", action="store_true", help=mend)
    low = "run guidance branches one by one and free every network after its stage"
    parser.add_argument("--low-memory", action="store_true", help=low)
    strict = "keep the networks as released instead of folding linear layers"
    parser.add_argument("--strict", action="store_true", help=strict)
    parser.add_argument("--no-graphs", action="store_true", help=_NO_GRAPHS)
    parser.add_argument("--storyboard", type=Path, help="write the keyframes as one contact sheet (.png, .jpg)")
    parser.set_defaults(run=run_generate)


def run_generate(options: argparse.Namespace) -> int:
    """Make a video file."""
    from ..media.pictures import read_image, write_image
    from ..media.sheet import contact_sheet
    from ..media.video import check_output, write_frames
    from ..runtime.clock import Clock

    check_output(options.output)
    if options.storyboard is not None:
        _check_picture(options.storyboard, "storyboard")
    if not options.prompt.strip():
        raise InputError("expected a prompt, got an empty text: describe what the video shows")
    picture = None if options.image is None else read_image(options.image)
    pipeline = _open_pipeline(options)
    settings = pipeline.resolve(_settings(options))
    decoder = {None: None, "image": "movq", "video": "video_movq"}[options.decoder]
    with Bars() as bars:
        clip = pipeline.sample(
            options.prompt, settings, negative=options.negative, picture=picture, decoder=decoder, progress=bars
        )
        clock = Clock(bars, clip.seconds)
        # Opened before the output is: what goes wrong inside of that counts as a failure to write.
        pipeline.network(decoder or pipeline.decoder_stage)
        with clock("decoding"):
            # Straight to the file: the frames of a long clip would fill the memory that its networks leave.
            chunks = pipeline.decode_chunks(clip.latents, settings, decoder=decoder, should_stop=clock.count)
            written = write_frames(chunks, options.output, clip.fps, count=len(clip.latents))
    if options.storyboard is not None:
        keyframes = pipeline.decode(clip.keyframes, settings, decoder=decoder)
        spacing = (len(clip.latents) - 1) / max(1, len(keyframes) - 1) / clip.fps
        write_image(contact_sheet(keyframes, times=[i * spacing for i in range(len(keyframes))]), options.storyboard)
    where = written[0] if len(written) == 1 else f"{written[0]} .. {written[-1].name}"
    print(
        f"{where}: {len(clip.latents)} frames of {settings.width} x {settings.height} at {clip.fps:g} frames per "
        f"second, seed {settings.seed}"
    )
    print(
        ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in clip.seconds.items())
        + f", {sum(clip.seconds.values()):.1f} s in all; peak memory {_peak_memory(pipeline.device)}"
    )
    return 0


def _open_pipeline(options: argparse.Namespace) -> Any:
    from ..checkpoints.lora import parse_choice
    from ..demo.model import demo_pipeline
    from ..pipeline.pipeline import Pipeline
    from ..runtime.devices import choose_device, choose_dtype, name_of

    device = choose_device(options.device)
    dtype = choose_dtype(device, options.dtype)
    print(f"running on {device} ({name_of(device)}) in {str(dtype).removeprefix('torch.')}", file=sys.stderr)
    choices = {
        "device": device,
        "dtype": dtype,
        "keeps_networks": not options.low_memory,
        "parity": "strict" if options.strict else "fast",
        "uses_graphs": not options.no_graphs,
        "loras": [parse_choice(text) for text in options.lora],
    }
    if options.model is not None:
        return Pipeline.from_folder(options.model, **choices)
    print(
        "no --model given: using the demo model, which knows one moving shape on a plain background, such as "
        "'a large purple triangle moves up on a white background'",
        file=sys.stderr,
    )
    return demo_pipeline(**choices)


def _settings(options: argparse.Namespace) -> Any:
    from ..pipeline.settings import Settings

    return Settings(
        fps=options.fps, width=options.width, height=options.height, steps=options.steps,
        guidance_scale=options.guidance, image_guidance=options.image_guidance,
        interpolation_guidance=options.interpolation_guidance, motion_score=MOTION_SCORES[options.motion],
        num_frames=options.keyframes, seed=options.seed, is_mended=options.mend,
        is_stacked=False if options.low_memory else None,
    )  # fmt: skip


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"expected a folder to write '{path.name}' into, found none at '{path.parent}': create it")


def _check_picture(path: Path, what: str) -> None:
    _check_folder(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"expected a {what} that ends in .png, .jpg or .webp, got '{path}': change its suffix")


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


def run_verify(options: argparse.Namespace) -> int:
    """Print every compared tensor; status 1 if one is over its limit, 2 if a case could not be run."""
    from ..verify.run import verify

    if not options.folder.is_dir():
        raise InputError(f"expected a folder of reference cases, found none at '{options.folder}': check the path")
    checks = []
    print(f"{'case':32} {'tensor':32} {'parity':7} {'error':>10} {'limit':>8}")
    for check in verify(options.folder):
        checks.append(check)
        if check.problem is not None:
            print(f"fusionframes: {check.problem}", file=sys.stderr)
            continue
        verdict = "pass" if check.passed else "FAIL"
        measured = f"{check.error:10.2e} {check.limit:8.0e}  {verdict}"
        print(f"{check.case:32} {check.tensor:32} {check.parity:7} {measured}", flush=True)
    passed = sum(check.passed for check in checks)
    broken = sum(check.problem is not None for check in checks)
    failed = len(checks) - passed - broken
    print(f"{passed} passed, {failed} failed" + (f", {broken} cases not run" if broken else ""))
    return EXIT_FAILED if failed else EXIT_ERROR if broken else 0


def _overrides(options: argparse.Namespace) -> dict[str, int]:
    given = {"head_dim": options.head_dim, "groups": options.groups}
    return {key: value for key, value in given.items() if value is not None}


def run_convert(options: argparse.Namespace) -> int:
    """Convert one weights file."""
    import torch

    from ..checkpoints.conversion import convert
    from ..checkpoints.lora import parse_choice

    if not options.target.parent.is_dir():
        raise InputError(f"expected a folder to write into, found none at '{options.target.parent}': create it")
    dtype = getattr(torch, options.dtype) if options.dtype else None
    merged = [parse_choice(text) for text in options.merge]
    kind = convert(options.source, options.target, dtype=dtype, overrides=_overrides(options), loras=merged)
    print(f"{options.target}: {kind.title}, {options.target.stat().st_size / 1e9:.2f} GB")
    return 0


def run_info(options: argparse.Namespace) -> int:
    """Describe a weights file, the implementations of the operations, or the paper's temporal variants."""
    if options.variant is not None:
        from ..bench.sizes import variant_lines

        print("\n".join(variant_lines(options.variant)))
        return 0
    if options.backends:
        from ..ops.registry import backends_of, describe_backends
        from ..runtime.devices import describe_devices

        for device_type, state in describe_devices():
            print(f"{device_type:5} {state}; runs {', '.join(backends_of(device_type))}")
        for operation, backend, state in describe_backends():
            print(f"{operation:18} {backend:8} {state}")
        return 0
    if options.file is None:
        raise InputError("info expected a weights file, got none: name one, or ask for --backends or --variant")
    from ..checkpoints.detection import detect, is_lora, split_tensors
    from ..checkpoints.reading import read_contents

    contents = read_contents(options.file)
    if is_lora(contents.tensors):
        from ..checkpoints.lora import describe_lora, read_lora

        print("\n".join(describe_lora(read_lora(contents.path))))
        return 0
    kind = detect(contents, _overrides(options))
    network, extras = split_tensors(contents)
    tensors = list({id(tensor): tensor for tensor in (*network.values(), *extras.values())}.values())
    dtypes: dict[str, int] = {}
    for tensor in tensors:
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + tensor.numel()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    print(f"file        {contents.path}")
    print(f"what        {kind.title}")
    print(f"released as {kind.where}")
    print(f"parameters  {sum(tensor.numel() for tensor in network.values()):,} in {len(network)} tensors")
    print(f"dtypes      {', '.join(f'{name} ({count:,})' for name, count in dtypes.items())}")
    print(f"besides     {', '.join(sorted(extras)) or 'nothing'}")
    print(f"memory      {size / 1e9:.2f} GB of weights as stored")
    print(f"needs       {_NEEDS[kind.stage]}")
    for key, value in (kind.config.to_dict() if kind.config else {}).items():
        print(f"  {key} = {value}")
    return 0


def run_bench(options: argparse.Namespace) -> int:
    """Measure workloads, or count them."""
    import json
    from dataclasses import asdict

    from ..bench import counting, gap_costs, runner

    if options.repeats < 1:
        raise InputError(f"expected at least one repeat, got {options.repeats}: raise --repeats")
    if options.record:
        rows = [row for name in counting.full_size(options.workload) for row in counting.recorded(name)]
        print("\n".join(map(json.dumps, rows) if options.json else counting.table(rows)))
        if not options.workload:
            costs = gap_costs.count_gaps()
            print("\n".join(map(json.dumps, gap_costs.rows(costs)) if options.json else ["", *gap_costs.table(costs)]))
        return 0
    workloads = runner.choose(options.workload)
    if options.history is not None:
        _check_folder(options.history)
    for workload in workloads:
        result = runner.measure(workload, options.repeats, uses_graphs=not options.no_graphs)
        print(json.dumps(asdict(result)) if options.json else runner.describe(result, workload), flush=True)
        if options.history is not None:
            runner.append_history(result, options.history)
    return 0


def run_evaluate(options: argparse.Namespace) -> int:
    """Print the metrics of clips against a reference."""
    import torch

    from ..media.pictures import write_image
    from ..metrics.evaluation import Networks, evaluate
    from ..metrics.features import load_i3d, load_inception
    from ..metrics.lpips import load_lpips
    from ..metrics.plots import plot_curves
    from ..metrics.tables import text_table, to_json
    from ..runtime.devices import choose_device

    if options.plot is not None:
        _check_picture(options.plot, "plot")
    device = choose_device(options.device)
    loaders = {"lpips": load_lpips, "i3d": load_i3d, "inception": load_inception}
    files = {name: getattr(options, name) for name in loaders}
    networks = Networks(**{name: loaders[name](path, device) for name, path in files.items() if path is not None})
    with Bars() as bars, torch.inference_mode():
        result = evaluate(
            options.reference, options.folder, networks, is_paired=not options.unpaired, splits=options.splits,
            progress=lambda done, total: bars("clips", done, total, unit="clip"),
        )  # fmt: skip
    if options.plot is not None:
        write_image(plot_curves(result.measures), options.plot)
    if options.json:
        print(to_json(result.measures, clips=result.clips, not_measured=list(result.missing)))
        return 0
    print(f"{result.clips} clips of '{options.folder}' against '{options.reference}'")
    print(text_table(result.measures))
    for phrase in result.missing:
        print(f"not measured: {phrase}")
    return 0


_NEEDS = {
    "keyframe": "a T5 text encoder with its projection, and a MoVQ; interpolation for more than 2 frames per second",
    "interpolation": "keyframe latents of the same release, and a MoVQ",
    "masked": "keyframe latents of the demo or of release 1.0, and a MoVQ",
    "movq": "nothing else; decodes release 1.0, encodes first frames of release 1.1",
    "video_movq": "nothing else; decodes release 1.1",
    "text_encoder": "spiece.model, and the projection in the 1.0 keyframe file or in t5_projections.pt (1.1)",
    "projection": "the Flan-UL2 text encoder",
}


def _show_warning(message: Warning | str, category: type[Warning], *place: object) -> None:
    print(f"fusionframes: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    warnings.showwarning = _show_warning
    try:
        options = build_parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except FusionFramesError as error:
        print(f"fusionframes: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("fusionframes: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) left: not an error, but Python would report it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except (MemoryError, RuntimeError) as error:
        # torch reports an exhausted device as a RuntimeError of its own; any other one is a defect to be seen.
        if isinstance(error, RuntimeError) and "out of memory" not in str(error) and "allocate" not in str(error):
            raise
        print("fusionframes: out of memory: try --low-memory, --fps low or a smaller size", file=sys.stderr)
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
