"""What several commands ask for: numbers' types, devices, sizes that shapes cannot tell."""

import argparse
import math
import os
from pathlib import Path

DTYPES = ("float32", "float16", "bfloat16")
# What the engine calls a setting, and what the command line does.
FLAGS = {"folder": "--model", "is_paired": "--unpaired", "splits": "--splits", "counts": "--record"}
DEVICE_HELP = "torch device of the networks (default: the first of cuda, mps, xpu, npu, cpu that there is)"
NO_GRAPHS = "launch every step anew instead of replaying a CUDA graph"


def local_rank_device() -> str | None:
    """Return the GPU of this process under torchrun, which starts one process per GPU and shows all GPUs to each."""
    from ..runtime.devices import count_devices

    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{int(rank)}" if rank is not None and count_devices("cuda") > 1 else None


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add what a run may use."""
    what = "GB of the device that a run may fill (default: what is free)"
    parser.add_argument("--vram", type=gigabytes, metavar="GB", help=what)
    what = "GB of main memory for weights that wait (default: what is free, a container's limit read too)"
    parser.add_argument("--ram", type=gigabytes, metavar="GB", help=what)


def add_quant(parser: argparse.ArgumentParser) -> None:
    """Add in which form weights are kept."""
    what = "keep weights of U-Nets in 8 bit: half the memory and copies, slightly other pictures"
    parser.add_argument("--quant", choices=("none", "int8"), default="none", help=what)


def add_text_encoder(parser: argparse.ArgumentParser) -> None:
    """Add where the text encoder lies if not in the folder of weights."""
    what = "text encoder in place of the folder's: safetensors, or GGUF with the extra fusionframes[gguf]"
    parser.add_argument("--text-encoder", type=Path, metavar="FILE", help=what)


def gigabytes(text: str) -> int:
    """Return bytes of a number of gigabytes."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not (size > 0 and math.isfinite(size)):
        raise argparse.ArgumentTypeError(f"expected a number of gigabytes above 0, got '{text}'")
    return int(size * 1e9)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add what a weights file may not tell."""
    parser.add_argument("--head-dim", type=int, help="width of an attention head (default 64 or the file's metadata)")
    parser.add_argument("--groups", type=int, help="groups of the norms (default 32 or the file's metadata)")


def overrides(options: argparse.Namespace) -> dict[str, int]:
    """Return what the user said of a weights file."""
    given = {"head_dim": options.head_dim, "groups": options.groups}
    return {key: value for key, value in given.items() if value is not None}
