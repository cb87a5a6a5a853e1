"""Train the demo model: ``python -m fusionframes.ff_kernels.demo.train --output FOLDER``."""

import argparse
from pathlib import Path

import torch

from ..errors import FusionFramesError
from ..training.run_folder import TrainRun
from .steps import STAGES, run_stage

# Float32 won on the machine of the shipped weights: its tiny layers are bound by memory and call overhead.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> None:
    """Run the stages asked for, resuming what an earlier run left unfinished; status 2 where one cannot go on."""
    parser = argparse.ArgumentParser(prog="fusionframes.ff_kernels.demo.train", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of weights and resume state")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage; may be repeated")
    parser.add_argument("--device", default="cpu", help="torch device to train on (default cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="compute dtype (default float32)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--share", type=float, default=1.0, help="factor on every stage's steps and clips (default 1)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    run = TrainRun(options.output, torch.device(options.device), DTYPES[options.dtype], options.share)
    try:
        for stage in options.stage or STAGES:
            run_stage(stage, run)
    except FusionFramesError as error:
        parser.exit(2, f"demo.train: {error}\n")


if __name__ == "__main__":
    main()
