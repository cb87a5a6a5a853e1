"""The command: runs what is missing, prints the tables, writes the JSON and the plots."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..errors import FusionFramesError
from ..files import atomic_path
from . import RESULTS, budgets, decoders, gaps, variants
from .plots import draw_plots
from .runs import ExperimentRun, Job, finish
from .tables import tables

GROUPS = {module.GROUP: module for module in (variants, gaps, decoders)}
JSON_NAME = "comparison.json"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="fusionframes.ff_kernels.paper", description=main.__doc__)
    parser.add_argument(
        "--work", type=Path, help="folder of numbers, weights and training states; resumed if it exists"
    )
    parser.add_argument("--only", choices=GROUPS, action="append", help="only this comparison; may be repeated")
    parser.add_argument("--share", type=float, default=1.0, help="factor on every budget (default 1: about an hour)")
    parser.add_argument("--seeds", type=int, default=budgets.SEEDS, help=f"runs per row (default {budgets.SEEDS})")
    parser.add_argument("--lpips", type=Path, help="network file for LPIPS of the decoders (default: none, column '-')")
    parser.add_argument("--time", action="store_true", help="also time both interpolations; let nothing else run")
    parser.add_argument("--results", type=Path, help="folder for JSON and plots (default: the folder of --work)")
    parser.add_argument("--show", action="store_true", help="run nothing: print the tables of the shipped results")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and measure the paper's comparisons at demo scale and print their tables."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.show:
        print(tables(load_results(RESULTS)))
        return 0
    if options.work is None or options.seeds < 1 or options.share <= 0:
        parser.error("expected --work FOLDER, 1 or more seeds and a share above 0, or --show: give these")
    run = ExperimentRun(options.work, options.share, tuple(range(1, options.seeds + 1)), options.lpips)
    target = options.results or options.work
    results = load_results(target)
    try:
        for group in options.only or GROUPS:
            results[group] = run_group(run, group)
            if group == gaps.GROUP:
                results["cost"] = gaps.count_costs()
                if options.time:
                    results["seconds"] = gaps.time_both(run)
            save_results(target, results)
    except FusionFramesError as error:
        parser.exit(2, f"paper: {error}\n")
    print(tables(results))
    draw_plots(results, target)
    return 0


def run_group(run: ExperimentRun, group: str) -> dict[str, object]:
    """Finish every run of a group and return its budget and numbers: rows to seeds to numbers."""
    jobs: list[Job] = GROUPS[group].jobs(run)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for job in tqdm(jobs, desc=group, unit="run"):
        rows.setdefault(job.name, {})[str(job.seed)] = finish(run, group, job)
    return {"settings": json.loads(json.dumps(jobs[-1].settings)), "rows": rows}


def load_results(folder: Path) -> dict[str, object]:
    """Return the results kept in a folder, empty if there are none."""
    path = folder / JSON_NAME
    return json.loads(path.read_text(encoding="ascii")) if path.exists() else {}


def save_results(folder: Path, results: dict[str, object]) -> None:
    """Keep results in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / JSON_NAME) as path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="ascii")
