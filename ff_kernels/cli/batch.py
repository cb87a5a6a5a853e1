"""``fusionframes batch``: the videos of a file of prompts."""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .console import say
from .generate import add_clip_options, clip_settings
from .options import local_rank_device

if TYPE_CHECKING:
    from ..batch.events import Tally
    from ..batch.ledger import Ledger

EXIT_INTERRUPTED = 130
# On a terminal the line is drawn over; in a log it comes again after so many seconds.
_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 30.0


def add_batch(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("batch", help="make the videos of a file of prompts, with any number of workers")
    parser.add_argument(
        "prompts",
        type=Path,
        nargs="?",
        help="prompts as .jsonl, .csv, .txt or .parquet; a column named as a setting (seed, steps, fps, "
        "guidance_scale, ...) or negative, image, decoder overrides the options for its row",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of the clips and of what is known of them"
    )
    parser.add_argument("--workers", type=int, help="workers (default: one per GPU, or one)")
    parser.add_argument(
        "--ray",
        metavar="WHERE",
        help="let Ray place the workers: local (this machine), auto (the cluster this machine is in) or an address",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="make only part I of N, 0 <= I < N, for arrays of jobs; auto takes both from SLURM or torchrun",
    )
    parser.add_argument("--retry-failed", action="store_true", help="try rows again that failed before")
    parser.add_argument(
        "--patience",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="end a worker that finishes no step for so long (default 600)",
    )
    parser.add_argument("--threads", type=int, help="threads of a worker on a processor (default: a fair share)")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the rows, say what a worker holds and how long; run nothing"
    )
    parser.add_argument(
        "--status", action="store_true", help="count what is there and rebuild the manifest; run nothing"
    )
    parser.add_argument("--pack", choices=("tar",), help="afterwards write the clips as webdataset shards")
    add_clip_options(parser)
    parser.set_defaults(run=run_batch_command)


def run_batch_command(options: argparse.Namespace) -> int:
    """Make the clips that are missing; 0 all there, 1 rows failed, 2 stopped or nothing could run, 130 interrupted."""
    from ..batch.events import duration
    from ..batch.jobs import RowDefaults
    from ..batch.ledger import Ledger
    from ..batch.run import WorkerOptions, run_batch

    if options.status:
        if not options.output.is_dir():
            raise InputError(f"expected the folder of a batch, found none at '{options.output}': check the path")
        return _status(options, Ledger(options.output))
    if options.prompts is None:
        raise InputError("expected a file of prompts, got none: name one, or ask for --status")
    shard = shard_of(options.shard, os.environ)
    defaults = RowDefaults(clip_settings(options), options.negative, options.image, options.decoder)
    model = _model_options(options)
    if options.dry_run:
        return _dry_run(options, model, defaults, shard)
    workers = WorkerOptions(options.workers, options.ray, shard, options.patience)
    line = _Line()
    try:
        result = run_batch(
            options.prompts, options.output, model=model, defaults=defaults, workers=workers,
            retry_failed=options.retry_failed, watch=line,
        )  # fmt: skip
    except KeyboardInterrupt as error:
        line.end()
        print("fusionframes: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return getattr(error, "status", EXIT_INTERRUPTED)
    line.end()
    say(
        f"{options.output}: {result.done} of {result.total} clips, {result.made} of them now, {result.failed} failed, "
        f"in {duration(result.seconds)}"
    )
    _show_failures(Ledger(options.output), result.failed)
    if result.stopped is not None:
        print(f"fusionframes: {result.stopped}", file=sys.stderr)
    elif options.pack:
        _pack(Ledger(options.output))
    return result.status


def _model_options(options: argparse.Namespace) -> Any:
    from ..batch.engine import ModelOptions
    from ..checkpoints.lora import parse_choice
    from ..runtime.devices import choose_device
    from ..runtime.plan import Budget

    # Where a cluster does the work, its machines decide; here a wrong name shall not wait for a worker to say so.
    device = options.device or local_rank_device()
    if options.ray is None and device is not None:
        choose_device(device)
    return ModelOptions(
        model=options.model,
        device=device,
        dtype=options.dtype,
        parity="strict" if options.strict else "fast",
        keeps_networks=not options.low_memory,
        uses_graphs=not options.no_graphs,
        threads=options.threads,
        loras=tuple(parse_choice(text) for text in options.lora),
        budget=Budget(options.vram, options.ram, options.low_memory),
    )


def shard_of(text: str | None, variables: Mapping[str, str]) -> tuple[int, int] | None:
    """Return part and number of parts of ``--shard``.

    Args:
        text: "I/N", "auto" or None.
        variables: of the environment, for "auto".

    Raises:
        InputError: if it is no part, or nothing says which.
    """
    if text is None:
        return None
    if text == "auto":
        text = _shard_of_this_job(variables)
    try:
        index, count = map(int, text.split("/"))
        is_shard = 0 <= index < count
    except ValueError:
        is_shard = False
    if not is_shard:
        raise InputError(f"expected a shard such as 0/16 to 15/16, got '{text}': count parts from 0")
    return index, count


def _shard_of_this_job(variables: Mapping[str, str]) -> str:
    for index, count, first in (
        ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
        ("RANK", "WORLD_SIZE", ""),
        ("SLURM_PROCID", "SLURM_NTASKS", ""),
    ):
        if index in variables and count in variables:
            return f"{int(variables[index]) - int(variables.get(first, 0))}/{variables[count]}"
    raise InputError(
        "expected the variables of a SLURM array, of torchrun or of srun for --shard auto, found none: write I/N"
    )


class _Line:
    """Shows the tally in one line that is drawn anew."""

    def __init__(self) -> None:
        self._is_terminal, self._last, self._width = sys.stderr.isatty(), 0.0, 0

    def __call__(self, tally: "Tally") -> None:
        now = time.monotonic()
        if now - self._last < (_TERMINAL_SECONDS if self._is_terminal else _LOG_SECONDS) and tally.missing:
            return
        self._last = now
        line = tally.line()
        print(f"\r{line:{self._width}}" if self._is_terminal else line, end="" if self._is_terminal else "\n",
              file=sys.stderr, flush=True)  # fmt: skip
        self._width = len(line)

    def end(self) -> None:
        """Leave the line standing."""
        if self._is_terminal and self._width:
            print(file=sys.stderr)


def _show_failures(ledger: "Ledger", count: int, most: int = 5) -> None:
    if not count:
        return
    for i, failure in enumerate(ledger.failures()):
        if i == most:
            print(f"... and more in '{ledger.folder / 'failed'}'", file=sys.stderr)
            return
        names = ", ".join(str(row["id"]) for row in failure["rows"])
        print(f"row {names}: {failure['error']}", file=sys.stderr)


def _status(options: argparse.Namespace, ledger: "Ledger") -> int:
    from ..batch.jobs import RowDefaults
    from ..batch.manifest import write_manifest
    from ..batch.run import plan_batch

    failed = {failure["key"] for failure in ledger.failures()}
    done = {record["key"] for record in ledger.records()}
    line = f"{ledger.folder}: {len(done)} done, {len(failed)} failed"
    if options.prompts is not None:
        defaults = RowDefaults(clip_settings(options), options.negative, options.image, options.decoder)
        keys = plan_batch(options.prompts, _model_options(options), defaults).keys
        line += (
            f"; of {options.prompts.name} {len(keys & done)} of {len(keys)} done, {len(keys - done - failed)} missing"
        )
    written = write_manifest(ledger)
    say(f"{line}; {', '.join(path.name for path in written)} written")
    _show_failures(ledger, len(failed))
    if options.pack:
        _pack(ledger)
    return 1 if failed else 0


def _pack(ledger: "Ledger") -> None:
    from ..batch.manifest import pack_tars

    written = pack_tars(ledger)
    say(f"{written[0].parent}: {len(written)} shards, {sum(path.stat().st_size for path in written) / 1e6:.1f} MB")


def _dry_run(options: argparse.Namespace, model: Any, defaults: Any, shard: tuple[int, int] | None) -> int:
    from ..batch.counts import plan_lines
    from ..batch.run import plan_batch

    plan = plan_batch(options.prompts, model, defaults)
    plan = plan if shard is None else plan.shard(*shard)
    for line in plan_lines(plan, options.output, model):
        say(line)
    return 1 if plan.refusals else 0
