"""What several commands ask for: numbers' types, devices, sizes that shapes cannot tell."""

import argparse

DTYPES = ("float32", "float16", "bfloat16")
# What the engine calls a setting, and what the command line does.
FLAGS = {"folder": "--model", "is_paired": "--unpaired", "splits": "--splits", "counts": "--record"}
DEVICE_HELP = "torch device of the networks (default: the first of cuda, mps, xpu, npu, cpu that there is)"
NO_GRAPHS = "launch every step anew instead of replaying a CUDA graph"


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add what a weights file may not tell."""
    parser.add_argument("--head-dim", type=int, help="width of an attention head (default 64 or the file's metadata)")
    parser.add_argument("--groups", type=int, help="groups of the norms (default 32 or the file's metadata)")


def overrides(options: argparse.Namespace) -> dict[str, int]:
    """Return what the user said of a weights file."""
    given = {"head_dim": options.head_dim, "groups": options.groups}
    return {key: value for key, value in given.items() if value is not None}
