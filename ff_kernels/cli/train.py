"""The command ``fusionframes train``: a LoRA or a temporal fine-tune from a folder of clips."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..stages.releases import DEMO_GUIDANCE_SCALE
from . import options as shared

if TYPE_CHECKING:
    from ..training.finetune import Job

_INTERRUPTED = 130
_SHOWN_CLIPS = 16


def add_train(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("train", help="teach a model your clips: a LoRA or a temporal fine-tune")
    lora, both = "of a LoRA", "keyframe: motion and look; interpolation: what happens between keyframes"
    parser.add_argument("clips", type=Path, help="folder of videos or PNG sequences with captions NAME.txt, or a jsonl")
    parser.add_argument("--model", type=Path, help="folder of released or converted weights (default: the demo model)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write, ending in .safetensors")
    parser.add_argument("--what", choices=("lora", "temporal"), default="lora", help="temporal: a whole checkpoint")
    parser.add_argument("--stage", choices=("keyframe", "interpolation"), default="keyframe", help=both)
    parser.add_argument("--layers", choices=("temporal", "attention", "all"), default="temporal", help=lora)
    parser.add_argument("--rank", type=int, default=16, help=f"{lora} (default 16)")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps (default 1000)")
    parser.add_argument("--batch", type=int, default=1, help="clips at a time (default 1)")
    parser.add_argument("--accumulate", type=int, default=4, help="batches per step, shared by processes (default 4)")
    parser.add_argument("--learning-rate", type=float, help="peak rate (default 1e-3 for a LoRA, else 1e-5)")
    parser.add_argument("--noise-weight", type=float, default=1.0, help="weight of the noisiest steps (default 1)")
    parser.add_argument("--size", type=int, help="side of a square clip in pixels (default 512, demo 64)")
    parser.add_argument("--keyframe-fps", type=float, default=2.0, help="keyframes per second of clip (default 2)")
    parser.add_argument("--source-fps", type=float, default=24.0, help="rate of PNG sequences (default 24)")
    parser.add_argument("--prior", type=Path, metavar="CLIPS", help="half of every batch: keeps what is known")
    parser.add_argument("--sample", action="append", default=[], metavar="PROMPT", help="draw this while it trains")
    parser.add_argument("--sample-every", type=int, default=200, metavar="N", help="steps between sheets (default 200)")
    parser.add_argument("--check", action="store_true", help="write what the network would see, train nothing")
    parser.add_argument("--seed", type=int, default=0, help="of factors, data and noise (default 0)")
    parser.add_argument("--device", help=shared.DEVICE_HELP)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of frozen weights (default: what fits it)")
    parser.add_argument("--no-checkpoints", action="store_true", help="keep every activation: faster, more memory")
    parser.add_argument("--adam8bit", action="store_true", help="optimiser state in 8 bits (needs bitsandbytes)")
    parser.set_defaults(run=run_train)


def run_train(options: argparse.Namespace) -> int:
    """Train, or go on; status 130 where it was stopped before its end."""
    from ..training.finetune import finetune
    from ..training.processes import join_processes

    job = _job(options)
    if options.check:
        return _check(job)
    _require_room(job)
    with join_processes(job.device) as processes:
        if not finetune(job, lambda line: print(line, flush=True), processes):
            return _INTERRUPTED
        if not processes.is_first:
            return 0
    print(f"{job.output}: {job.output.stat().st_size / 1e6:.2f} MB after {job.config.steps} steps")
    return 0


def _job(options: argparse.Namespace) -> "Job":
    import torch

    from ..checkpoints.folder import find_models
    from ..demo import WEIGHTS
    from ..runtime.devices import choose_device, choose_dtype, computes_in
    from ..training.finetune import Job
    from ..training.loop import TrainConfig
    from ..training.tuning import Tuning

    if options.output.suffix != ".safetensors" or not options.output.parent.is_dir():
        raise InputError(
            f"expected a file that ends in .safetensors in a folder that exists, got '{options.output}': choose another"
        )
    for name in ("steps", "batch", "accumulate", "sample_every"):
        if getattr(options, name) < 1:
            raise InputError(f"expected 1 or more as {name.replace('_', ' ')}, got {getattr(options, name)}: raise it")
    device = choose_device(options.device or shared.local_rank_device())
    name = options.dtype or ("bfloat16" if device.type != "cpu" and computes_in(device, torch.bfloat16) else "float32")
    rate = options.learning_rate or (1e-3 if options.what == "lora" else 1e-5)
    tuning = Tuning(
        stage=options.stage, what=options.what, layers=options.layers, rank=options.rank,
        size=options.size or (512 if options.model else 64), keyframe_fps=options.keyframe_fps,
        source_fps=options.source_fps, noise_weight=options.noise_weight, checkpoints=not options.no_checkpoints,
        sample_guidance=None if options.model else DEMO_GUIDANCE_SCALE,
        seed=options.seed, prompts=tuple(options.sample), sample_every=options.sample_every if options.sample else 0,
    )  # fmt: skip
    config = TrainConfig(
        steps=options.steps, batch=options.batch, learning_rate=rate, warmup=min(50, options.steps), weight_decay=0,
        ema_decay=0.98, accumulate=options.accumulate, uses_8bit=options.adam8bit,
    )  # fmt: skip
    return Job.find(
        find_models(options.model or WEIGHTS), options.clips, options.prior, output=options.output, tuning=tuning,
        config=config, device=device, dtype=choose_dtype(device, name),
    )  # fmt: skip


def _check(job: "Job") -> int:
    from ..bench.tuning_memory import memory_row
    from ..media.pictures import write_image
    from ..training.clips import read_windows
    from ..training.samples import captioned_sheet

    rows, count = [], 0
    for clip in (*job.clips, *job.prior):
        windows = read_windows(clip, job.windows)
        count += sum(map(len, windows.values()))
        if len(rows) < _SHOWN_CLIPS:
            frames = next(iter(windows.values()))[0]
            rows.append((frames.permute(0, 2, 3, 1), f"{clip.files.name}: {clip.caption}"))
    path = job.output.with_suffix(".check.png")
    write_image(captioned_sheet(rows), path)
    print(f"{len(job.clips)} clips and {len(job.prior)} of the prior, {count} windows in all; shown on {path}")
    print(memory_row(job))
    return 0


def _require_room(job: "Job") -> None:
    from ..bench.tuning_memory import memory_row, needed_bytes
    from ..runtime.devices import free_bytes

    free = free_bytes(job.device)
    if free is not None and (needed := needed_bytes(job)) > free:
        raise InputError(
            f"expected {needed / 1e9:.1f} GB free on {job.device}, found {free / 1e9:.1f} ({memory_row(job)}): lower "
            "the size, batch or rank"
        )
