"""``fusionframes bench --quality``: what fewer steps cost, measured, kept and drawn."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..stages.presets import PRESETS, RELEASED
from . import options as shared

PROMPT = "a large purple triangle moves up on a white background"
# Two that move and two that hardly do, for weights that nothing can grade.
PROMPTS = (
    "a red car drifts on a mountain road, close up",
    "waves break on a rocky shore at sunset",
    "a cat sits on a window sill and looks outside",
    "snow falls on a quiet village at night",
)


def add_quality_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the measurement to ``bench``."""
    group = parser.add_argument_group("quality", "what fewer steps cost; all of these go with --quality")
    group.add_argument("--quality", action="store_true", help="measure presets instead of timing workloads")
    group.add_argument("--model", type=Path, help="folder of weights (default: the demo, which has a grader)")
    group.add_argument("--preset", action="append", choices=PRESETS, help="preset to measure (default: all)")
    group.add_argument("--captions", type=int, default=64, help="held-out captions of the demo (default 64)")
    group.add_argument("--seeds", type=int, default=3, help="runs over all captions or prompts (default 3)")
    group.add_argument("--videos", type=int, default=12, help="captions measured as whole clips (default 12)")
    group.add_argument("--truths", type=int, default=8, help="true clips to interpolate (default 8)")
    group.add_argument("--prompt", action="append", help="with --model: what clips show (default: four of our own)")
    group.add_argument("--results", type=Path, metavar="FILE", help="keep figures here (.json), a picture beside it")
    group.add_argument("--time", action="store_true", help="only time the presets again, in results that are kept")
    group.add_argument("--device", help=shared.DEVICE_HELP)


def run_quality(options: argparse.Namespace) -> int:
    """Measure presets and print the table; with ``--results`` keep them."""
    from ..bench.quality_report import read_results, table, write_results

    names = list(dict.fromkeys(options.preset or PRESETS))
    if options.results is not None and options.results.suffix != ".json":
        raise InputError(f"expected results that end in .json, got '{options.results}': change the suffix")
    if options.time and (options.results is None or options.model is not None):
        raise InputError("expected --time with --results and without --model, whose clips are timed as they are made")
    results = read_results(options.results) if options.time else {}
    pipeline = _open(options)
    if options.model is not None:
        results = _against_released(pipeline, names, options)
    else:
        results = results or _graded(names, pipeline, options)
        _time(results, pipeline, options)
    if options.results is not None:
        write_results(results, options.results)
    print(json.dumps(results) if options.json else "\n".join(table(results["rows"])))
    return 0


def _open(options: argparse.Namespace) -> Any:
    from ..demo.model import demo_pipeline
    from ..pipeline.pipeline import Pipeline
    from ..runtime.devices import choose_device, choose_dtype

    device = choose_device(options.device)
    choices = {"device": device, "dtype": choose_dtype(device, None)}
    return demo_pipeline(**choices) if options.model is None else Pipeline.from_folder(options.model, **choices)


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _graded(names: list[str], pipeline: Any, options: argparse.Namespace) -> dict[str, Any]:
    from .. import __version__
    from ..bench.quality import Extent, measure_preset, measure_truth

    extent = Extent(captions=options.captions, seeds=options.seeds, videos=options.videos, truths=options.truths)
    rows = {name: measure_preset(pipeline, name, extent, _report) for name in names}
    return {"version": __version__, "extent": vars(extent), "rows": {**rows, "true clips": measure_truth(extent)}}


def _time(results: dict[str, Any], pipeline: Any, options: argparse.Namespace) -> None:
    from ..bench.quality import time_presets
    from ..runtime.devices import name_of

    timed = [name for name in results["rows"] if name in PRESETS]
    _report("seconds per clip")
    for name, seconds in time_presets(pipeline, timed, PROMPT, options.repeats).items():
        results["rows"][name]["seconds"] = seconds
    results["timed_on"] = name_of(pipeline.device)


def _against_released(pipeline: Any, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    from .. import __version__
    from ..bench.quality import measure_against_released
    from ..pipeline.settings import Settings

    prompts, settings = options.prompt or PROMPTS, replace(Settings(), fps="high")
    names = [name for name in names if name != RELEASED]
    rows = measure_against_released(pipeline, names, prompts, options.seeds, settings, _report)
    return {"version": __version__, "prompts": list(prompts), "seeds": options.seeds, "rows": rows}
