"""``convert`` and ``info``: what weights files are."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import options as shared
from .console import say
from .files import check_folder, check_kept

_NEEDS = {
    "keyframe": "a T5 text encoder with its projection, and a MoVQ; interpolation for more than 2 frames per second",
    "interpolation": "keyframe latents of the same release, and a MoVQ",
    "masked": "keyframe latents of the demo or of release 1.0, and a MoVQ",
    "movq": "nothing else; decodes release 1.0, encodes first frames of release 1.1",
    "video_movq": "nothing else; decodes release 1.1",
    "text_encoder": "spiece.model, and the projection in the 1.0 keyframe file or in t5_projections.pt (1.1)",
    "projection": "the Flan-UL2 text encoder",
}


def add_convert(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("convert", help="write released weights as one safetensors file")
    parser.add_argument("source", type=Path, help=".pt, safetensors, an index of shards, or a folder of them")
    parser.add_argument("target", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--dtype", choices=shared.DTYPES, help="dtype of the tensors (default: as stored)")
    what = "add a LoRA to a U-Net's weights; may be given several times"
    parser.add_argument("--merge", action="append", default=[], metavar="LORA[:STRENGTH]", help=what)
    what = "fold the layers of a U-Net: the same function with less work, and no longer the names that a LoRA goes by"
    parser.add_argument("--fold", action="store_true", help=what)
    what = "round the large layers of a U-Net or text encoder to 8 bit: half the file, the memory and the copies"
    parser.add_argument("--quant", choices=("none", "int8"), default="none", help=what)
    shared.add_overrides(parser)
    parser.set_defaults(run=run_convert)


def add_info(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("info", help="say what a weights file is and needs")
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--backends", action="store_true", help="say which implementation may serve each operation")
    what = "count a temporal variant of the paper, or all four"
    parser.add_argument("--variant", nargs="?", const="all", metavar="NAME", help=what)
    what = "say how a run of this folder of weights would use memory; with --vram for a card that is not here"
    parser.add_argument("--plan", type=Path, metavar="FOLDER", help=what)
    shared.add_budget(parser)
    shared.add_quant(parser)
    shared.add_text_encoder(parser)
    for side in ("--width", "--height"):
        parser.add_argument(side, type=int, help="pixels, with --plan (default 512)")
    shared.add_overrides(parser)
    parser.set_defaults(run=run_info)


def run_convert(options: argparse.Namespace) -> int:
    """Convert one weights file."""
    import torch

    from ..checkpoints.conversion import convert
    from ..checkpoints.lora import parse_choice
    from ..ops.rounding import Report

    merged = [parse_choice(text) for text in options.merge]
    check_folder(options.target)
    check_kept(options.target, "target", [options.source, *(path for path, _ in merged)])
    dtype = getattr(torch, options.dtype) if options.dtype else None
    report = Report() if options.quant == "int8" else None
    kind = convert(
        options.source, options.target, dtype=dtype, overrides=shared.overrides(options), loras=merged,
        folds=options.fold, rounding=report,
    )  # fmt: skip
    form = [", layers folded"] * options.fold + ([] if report is None else [f", {report.phrase()}"])
    say(f"{options.target}: {kind.title}, {options.target.stat().st_size / 1e9:.2f} GB{''.join(form)}")
    return 0


def run_info(options: argparse.Namespace) -> int:
    """Describe a weights file, the implementations of the operations, or the paper's temporal variants."""
    if options.variant is not None:
        from ..bench.sizes import variant_lines

        print("\n".join(variant_lines(options.variant)))
        return 0
    if options.plan is not None:
        return _print_plan(options)
    if options.backends:
        from ..ops.registry import backends_of, describe_backends
        from ..runtime.devices import describe_devices

        for device_type, state in describe_devices():
            print(f"{device_type:5} {state}; implementations: {', '.join(backends_of(device_type))}")
        for operation, backend, state in describe_backends():
            print(f"{operation:18} {backend:8} {state}")
        return 0
    if options.file is None:
        raise InputError("info expected a weights file, got none: name one, or ask for --plan, --backends or --variant")
    from ..checkpoints.detection import detect, is_lora, split_tensors
    from ..checkpoints.reading import LEFT_KEY, read_contents

    contents = read_contents(options.file)
    if is_lora(contents.tensors):
        from ..checkpoints.lora import describe_lora, read_lora

        print("\n".join(describe_lora(read_lora(contents.path))))
        return 0
    kind = detect(contents, shared.overrides(options))
    network, extras = split_tensors(contents)
    tensors = list({id(tensor): tensor for tensor in (*network.values(), *extras.values())}.values())
    formats = {id(contents.tensors[name]): weight.format for name, weight in contents.packed.items()}
    dtypes: dict[str, int] = {}
    for tensor in tensors:
        name = formats.get(id(tensor), str(tensor.dtype).removeprefix("torch."))
        dtypes[name] = dtypes.get(name, 0) + tensor.numel()
    blocks = [weight.raw for weight in contents.packed.values()]
    stored = (*(tensor for tensor in tensors if not tensor.is_meta), *blocks, *contents.scales.values())
    size = sum(tensor.nbytes for tensor in stored)
    print(f"file        {contents.path}")
    print(f"what        {kind.title}")
    print(f"released as {kind.where}")
    print(f"parameters  {sum(tensor.numel() for tensor in network.values()):,} in {len(network)} tensors")
    print(f"dtypes      {', '.join(f'{name} ({count:,})' for name, count in dtypes.items())}")
    if contents.form:
        left = contents.metadata.get(LEFT_KEY)
        print(f"layers      {contents.form}" + (f"; left in 16 bit: {', '.join(left)}" if left else ""))
    print(f"besides     {', '.join(sorted(extras)) or 'nothing'}")
    print(f"memory      {size / 1e9:.2f} GB of weights as stored")
    print(f"needs       {_NEEDS[kind.stage]}")
    for key, value in (kind.config.to_dict() if kind.config else {}).items():
        print(f"  {key} = {value}")
    return 0


def _print_plan(options: argparse.Namespace) -> int:
    from ..pipeline.pipeline import Pipeline
    from ..pipeline.planning import TITLES, plan_run
    from ..pipeline.settings import Settings
    from ..runtime.devices import planned_device
    from ..runtime.plan import Budget, size_of

    device = planned_device()
    if options.vram is None and not device.is_here:
        raise InputError("info --plan expected the memory of a card that is not here, got none: give --vram")
    pipeline = Pipeline.from_folder(
        options.plan, device=device.device, dtype=device.dtype, budget=Budget(options.vram, options.ram),
        rounds=options.quant == "int8", text_encoder=options.text_encoder,
    )  # fmt: skip
    highest = "high" if pipeline.gap_stage in pipeline.models.files else "low"
    settings = pipeline.resolve(Settings(fps=highest, width=options.width, height=options.height))
    limits = pipeline.networks.limits()
    rows = [TITLES, *(stage.row() for stage in plan_run(pipeline, settings, draws_picture=True))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(
        f"release {pipeline.family}, {settings.width} x {settings.height}, {settings.keyframes} keyframes, fps "
        f"{settings.fps}, {str(device.dtype).removeprefix('torch.')}"
    )
    waiting = "all" if limits.ram is None else size_of(limits.ram)
    print(
        f"weights and results in {size_of(limits.vram)} of the device; {waiting} of main memory for weights that wait"
    )
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
