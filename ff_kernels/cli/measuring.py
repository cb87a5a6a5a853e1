"""``evaluate``, ``verify`` and ``bench``: how good, how exact, how fast."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import options as shared
from .files import check_folder, check_kept, check_picture
from .progress import Bars
from .quality import add_quality_options, run_quality

EXIT_FAILED, EXIT_NOT_RUN = 1, 2


def add_verify(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("verify", help="check the engine against reference cases")
    parser.add_argument("folder", type=Path, help="folder of NAME.json beside NAME.safetensors")
    parser.set_defaults(run=run_verify)


def add_bench(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("bench", help="time the engine against the release's formulation")
    what = (
        "keyframes, interpolation or decode with -cpu, -512, -640x384 or -1.1-512, or text-ul2; may be repeated "
        "(default: for this machine)"
    )
    parser.add_argument("--workload", action="append", metavar="NAME", help=what)
    parser.add_argument("--repeats", type=int, default=3, help="calls behind each median (default 3)")
    what = "print one JSON object per line; with --acceptance: write everything to this file too"
    parser.add_argument("--json", nargs="?", const=True, metavar="FILE", help=what)
    parser.add_argument("--history", type=Path, metavar="FILE", help="append one line of CSV per workload")
    what = "run nothing: count launches, FLOPs, bytes and memory of the full sizes beside the targets"
    parser.add_argument("--record", action="store_true", help=what)
    parser.add_argument("--no-graphs", action="store_true", help=shared.NO_GRAPHS)
    what = "check a card: kernels, recorded steps, full-size steps, streaming, decoding; status 1 if a line fails"
    parser.add_argument("--acceptance", action="store_true", help=what)
    what = "with --acceptance: GB that a step with streamed weights may fill (default: room for half of the weights)"
    parser.add_argument("--vram", type=shared.gigabytes, metavar="GB", help=what)
    add_quality_options(parser)
    parser.set_defaults(run=run_bench)


def add_evaluate(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("evaluate", help="measure clips against reference clips")
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
    parser.add_argument("--device", help=shared.DEVICE_HELP)
    parser.set_defaults(run=run_evaluate)


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
    return EXIT_FAILED if failed else EXIT_NOT_RUN if broken else 0


def run_bench(options: argparse.Namespace) -> int:
    """Measure workloads, or count them."""
    import json
    from dataclasses import asdict

    from ..bench import clip_costs, counting, estimates, gap_costs, runner

    if options.repeats < 1:
        raise InputError(f"expected at least one repeat, got {options.repeats}: raise --repeats")
    if options.acceptance:
        return _accept(options)
    if options.json not in (None, True) or options.vram is not None:
        raise InputError("bench expected --json FILE and --vram GB with --acceptance, got them without: add it")
    if options.quality:
        return run_quality(options)
    if options.record:
        rows = [row for name in counting.full_size(options.workload) for row in counting.recorded(name)]
        print("\n".join(map(json.dumps, rows) if options.json else counting.table(rows)))
        if not options.workload:
            costs = gap_costs.count_gaps()
            print("\n".join(map(json.dumps, gap_costs.rows(costs)) if options.json else ["", *gap_costs.table(costs)]))
            clips = clip_costs.clip_costs()
            lines = ["", "seconds per clip at the roofline of an H200:", *clip_costs.clip_table(clips)]
            print("\n".join(json.dumps(asdict(clip)) for clip in clips) if options.json else "\n".join(lines))
            waits = estimates.acceptance_estimates()
            lines = ["", "seconds of bench --acceptance on a card, estimated:", *estimates.table(waits)]
            print("\n".join(json.dumps(asdict(wait)) for wait in waits) if options.json else "\n".join(lines))
        return 0
    workloads = runner.choose(options.workload)
    if options.history is not None:
        check_folder(options.history)
    for workload in workloads:
        result = runner.measure(workload, options.repeats, uses_graphs=not options.no_graphs)
        print(json.dumps(asdict(result)) if options.json else runner.describe(result, workload), flush=True)
        if options.history is not None:
            runner.append_history(result, options.history)
    return 0


def _accept(options: argparse.Namespace) -> int:
    from ..bench.acceptance import acceptance_lines, timed_lines, told
    from ..bench.lines import FAILED, table, write_lines
    from ..runtime.devices import choose_device, name_of

    path = None if options.json in (None, True) else Path(options.json)
    if path is not None:
        check_folder(path)
    device = choose_device(options.device)
    names = tuple(options.workload) if options.workload else None
    lines, seconds = timed_lines(
        acceptance_lines(device, vram=options.vram, names=names, repeats=options.repeats),
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    print("\n".join([f"{name_of(device)}, {seconds:.0f} s", "", *table(lines)]))
    if path is not None:
        write_lines(path, lines, told(device, seconds))
    failed = [line.check for line in lines if line.verdict == FAILED]
    print(f"{len(failed)} failed: {'; '.join(failed)}" if failed else "accepted")
    return EXIT_FAILED if failed else 0


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
        check_picture(options.plot, "plot")
        networks = (options.lpips, options.i3d, options.inception)
        check_kept(options.plot, "plot", (options.reference, options.folder, *filter(None, networks)))
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
    if None in files.values():
        print(f"networks are given by {', '.join(f'--{name}' for name, path in files.items() if path is None)}")
    return 0
