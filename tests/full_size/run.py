"""Released sizes on a machine without a card: what ``info``, ``convert`` and ``generate`` take of its memory.

``python tests/full_size/run.py FOLDER [--family 1.1] [--vram 4 --ram 6]`` writes checkpoints of the released sizes with
random weights into FOLDER (release 1.0: 34 GB, 1.1: 36 GB, which is a few minutes), runs the commands at 64x64 with
one step, and prints the most anonymous memory and the most mapped file pages of each. Linux only. It is no part of the
test command: a run takes ten minutes or more on two cores, and 12 GB of memory should be free.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fusionframes.ff_kernels.checkpoints.conversion import write_checkpoint
from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.checkpoints.loading import build_network
from fusionframes.ff_kernels.demo.steps import train_tokenizer
from fusionframes.ff_kernels.models import configs

PROMPT = "a large red circle moves left on a white background"
DTYPE = torch.bfloat16
# Standard deviation of every weight; what comes out of the networks means nothing.
SPREAD = 0.02
PROGRAM = [sys.executable, "-m", "fusionframes.ff_kernels"]


def kinds_of(family: str) -> list[Kind]:
    """What a folder of the release holds, but for the projection."""
    number = family.replace(".", "")
    unets = {stage: getattr(configs, f"{stage.upper()}_V{number}") for stage in ("keyframe", "interpolation")}
    found = [Kind(stage, family, config) for stage, config in unets.items()]
    found += [Kind("movq", "", configs.MOVQ), Kind("text_encoder", "", configs.TextConfig())]
    return found + ([Kind("video_movq", "", configs.VIDEO_MOVQ)] if family == "1.1" else [])


def write_release(folder: Path, family: str, stages: Sequence[str]) -> None:
    """Write the files that are not there yet; all weights are views of one block of random numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(train_tokenizer())
    width, text_width = configs.KEYFRAME_V10.context_dim, configs.TextConfig().d_model
    values = torch.empty(configs.TextConfig().vocab_size * text_width, dtype=DTYPE).normal_(std=SPREAD)
    projection = {"0.weight": values[: width * text_width].view(width, text_width), "1.weight": values[:width],
                  "1.bias": values[:width]}  # fmt: skip
    for kind in kinds_of(family):
        path = folder / f"{kind.stage}.safetensors"
        if kind.stage not in stages or path.exists():
            continue
        shapes = {key: value.shape for key, value in build_network(kind, device="meta").state_dict().items()}
        tensors = {key: values[: shape.numel()].view(shape) for key, shape in shapes.items()}
        if kind.stage in ("keyframe", "interpolation"):
            tensors["null_embedding"] = values[:width]
        if kind.stage == "keyframe" and family == "1.0":
            tensors |= {f"projections.t5.{key}": value for key, value in projection.items()}
        write_checkpoint(path, kind, tensors, None)
        print(f"{path}: {path.stat().st_size / 1e9:.2f} GB", flush=True)
    if family == "1.1":
        named = {f"projection_base.{key}": value for key, value in projection.items()}
        write_checkpoint(folder / "projection.safetensors", Kind("projection", "1.1"), named, None)


def memory_of(process: int) -> dict[str, int]:
    """Bytes of anonymous memory and of mapped file pages."""
    try:
        rows = (line.split() for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines())
        return {row[0][:-1]: int(row[1]) * 1024 for row in rows if row and row[0] in ("RssAnon:", "RssFile:")}
    except OSError:
        return {}


def watch(arguments: Sequence[str | Path]) -> None:
    """Run a command and print what each of its stages took: what it says of their seconds tells when they ran."""
    started, planned = time.monotonic(), None
    taken: list[tuple[float, dict[str, int]]] = []
    with tempfile.TemporaryDirectory() as folder:
        out, said = Path(folder) / "out", Path(folder) / "said"
        with (
            out.open("w") as stdout, said.open("w") as stderr,
            subprocess.Popen([*PROGRAM, *map(str, arguments)], stdout=stdout, stderr=stderr) as process,
        ):  # fmt: skip
            while process.poll() is None:
                if planned is None and "plan: " in said.read_text(errors="replace"):
                    planned = time.monotonic()
                taken.append((time.monotonic(), memory_of(process.pid)))
                time.sleep(0.05)
        printed, text = out.read_text(errors="replace"), said.read_text(errors="replace")
    for line in text.splitlines():
        if process.returncode or line.startswith(("plan: ", "fusionframes: ")):
            print(line)
    print(f"{printed}$ fusionframes {' '.join(map(str, arguments))}: status {process.returncode}, "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    for stage, peaks in peaks_by_stage(taken, planned or started, text + printed).items():
        print(f"    {stage:16} " + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in sorted(peaks.items())))


def peaks_by_stage(
    taken: Sequence[tuple[float, dict[str, int]]], planned: float, printed: str
) -> dict[str, dict[str, int]]:
    """The most of each kind of memory per stage of a run; a stage holds the reading and folding of its network."""
    seconds = re.search(r"^(text \d.*), [\d.]+ s in all", printed, re.MULTILINE)
    ends, most = [("start", planned)], {}
    for name, length in re.findall(r"([a-z][a-z \d]*?) ([\d.]+) s", seconds[1] if seconds else ""):
        ends.append((name, ends[-1][1] + float(length)))
    for at, memory in taken:
        stage = next((name for name, end in ends if at < end), ends[-1][0])
        peaks = most.setdefault(stage, {})
        peaks |= {name: max(peaks.get(name, 0), size) for name, size in memory.items()}
    return most


def main() -> int:
    """Write, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=("1.0", "1.1"), default="1.0")
    parser.add_argument("--fps", choices=("low", "medium"), default="medium")
    parser.add_argument("--vram", default="4")
    parser.add_argument("--ram", default="6")
    options = parser.parse_args()
    stages = [kind.stage for kind in kinds_of(options.family)]
    stages = [stage for stage in stages if stage != "interpolation" or options.fps == "medium"]
    write_release(options.folder, options.family, stages)
    watch(["info", options.folder / "keyframe.safetensors"])
    watch(["convert", options.folder / "movq.safetensors", options.folder.parent / "converted.safetensors"])
    run = ["generate", PROMPT, "-o", options.folder.parent / "out.gif", "--model", options.folder, "--width", "64",
           "--height", "64", "--steps", "1", "--fps", options.fps, "--dtype", "bfloat16",
           "--no-prompt-cache"]  # fmt: skip
    watch([*run, "--low-memory"])
    watch([*run, "--vram", options.vram, "--ram", options.ram])
    return 0


if __name__ == "__main__":
    sys.exit(main())
