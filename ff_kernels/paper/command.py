"""The command: does what is missing, job by job, and shows or collects what is there."""

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..bench.quality_report import RESULTS as QUALITY
from ..bench.quality_report import read_results, table
from ..errors import FusionFramesError
from ..training.interruption import SignalStop
from . import RESULTS, page
from .curves import draw_curves
from .page import PRESETS
from .plan import GROUPS, gather, jobs_of, list_jobs
from .plots import draw_plots
from .runs import JOBS, ExperimentRun, OutOfTimeError, finish


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="fusionframes.ff_kernels.paper", description=main.__doc__)
    parser.add_argument(
        "--work", type=Path, help="folder of numbers, weights and training states; resumed if it exists"
    )
    parser.add_argument(
        "--only", choices=(*GROUPS, PRESETS), action="append", help="only this comparison; may be repeated"
    )
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop cleanly after so long, to go on later")
    parser.add_argument("--dry-run", action="store_true", help="only list the jobs, and the hours that each needs")
    parser.add_argument("--show", action="store_true", help="run nothing: print the tables of what is done")
    parser.add_argument("--collect", action="store_true", help="run nothing: take what is done into the package")
    parser.add_argument("--share", type=float, default=1.0, help="factor on every budget (default 1)")
    parser.add_argument("--seeds", type=int, help="runs per row (default: 3 of the variants, 2 of the others)")
    parser.add_argument("--lpips", type=Path, help="network file for LPIPS of the decoders (default: none, column '-')")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and measure the paper's comparisons at demo scale; what an earlier run has done is not done again."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    is_short = options.show or options.collect or options.dry_run
    if (options.work is None and not is_short) or options.share <= 0 or (options.seeds or 1) < 1:
        parser.error("expected --work FOLDER, 1 or more seeds and a share above 0, or --show: give these")
    groups = [name for name in GROUPS if name in (options.only or GROUPS)]
    deadline = time.monotonic() + 60 * options.budget if options.budget is not None else float("inf")
    with SignalStop() as stop:
        run = ExperimentRun(
            options.work or RESULTS, options.share, options.seeds, options.lpips,
            lambda: stop.asked or time.monotonic() > deadline,
        )  # fmt: skip
        jobs = jobs_of(run, groups)
        try:
            if options.collect:
                collect(run)
                return 0
            if options.dry_run:
                print("\n".join(list_jobs(run, jobs)))
                return 0
            if not options.show:
                print("\n".join(list_jobs(run, jobs)), flush=True)
                work_off(run, jobs)
        except FusionFramesError as error:
            parser.exit(2, f"paper: {error}\n")
    done = gather(run, jobs)
    if not options.show:
        draw_plots(done, run.folder)
        draw_curves(done, run.folder)
    print("\n\n".join("\n".join(page.section(group, done, jobs)) for group in groups))
    if options.only is None or PRESETS in options.only:
        print("\n".join(["", *table(read_results(QUALITY)["rows"])]))
    return 0


def work_off(run: ExperimentRun, jobs: Sequence) -> None:
    """Finish jobs until time is over."""
    try:
        for job in tqdm(jobs, desc="jobs", unit="job"):
            finish(run, job)
    except OutOfTimeError as left:
        print(f"left at {left}; the same command goes on from here", flush=True)


def collect(run: ExperimentRun) -> None:
    """Take the finished jobs of a folder into the package: numbers, pictures and page; stale numbers go."""
    jobs = jobs_of(run, GROUPS)
    target = RESULTS / JOBS
    target.mkdir(parents=True, exist_ok=True)
    done = gather(run, jobs)
    for job in jobs:
        if str(job.seed) in done.get(job.group, {}).get(job.name, {}) and run.record_file(job).exists():
            shutil.copyfile(run.record_file(job), target / run.record_file(job).name)
    kept = {f"{job.stem}.json" for job in jobs if str(job.seed) in done.get(job.group, {}).get(job.name, {})}
    for path in target.glob("*.json"):
        if path.name not in kept:
            path.unlink()
    for group in GROUPS:
        if page.is_ranked(group, done, jobs):
            draw_plots({group: done[group]}, RESULTS)
            draw_curves({group: done[group]}, RESULTS)
    page.write(done, jobs)


def lower_priority() -> None:
    """Let everything else on the machine go first, where the system can."""
    if hasattr(os, "nice"):
        os.nice(10)
