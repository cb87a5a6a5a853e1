"""Sixty-four rows with the demo model against everything that may happen to a run of two workers."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from support.batch_engine import POISON

from fusionframes.ff_kernels.batch.engine import ModelOptions
from fusionframes.ff_kernels.batch.jobs import RowDefaults
from fusionframes.ff_kernels.batch.ledger import Ledger
from fusionframes.ff_kernels.batch.run import plan_batch
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.pipeline.writing import write_clip

DRIVER = Path(__file__).parents[1] / "support" / "batch_driver.py"
QUICK = {"fps": "low", "width": 16, "height": 16, "steps": 1, "keyframes": 2}
# No clip of these rows is as small.
FILE_BYTES = 1_500
MODEL = ModelOptions(device="cpu", dtype="float32", threads=torch.get_num_threads())


def write_prompts(folder: Path) -> Path:
    """Write 61 good rows in three kinds, one of them twice, one whose prompt kills and one with a broken picture."""
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    colours, shapes = ("red", "blue", "green", "purple"), ("circle", "square", "triangle")
    kinds = ({"keyframes": 1}, {"fps": "medium"}, {"negative": "blue"})
    rows = [
        {"prompt": f"a small {colours[i % 4]} {shapes[i % 3]} moves up", **QUICK, "seed": i,
         **(kinds[i // 4 % 3] if i % 4 == 0 else {})}
        for i in range(61)
    ]  # fmt: skip
    rows.insert(7, {"prompt": POISON, **QUICK})
    rows.insert(20, {"prompt": "a small red circle", **QUICK, "image": "broken.png"})
    rows.append({**rows[0], "id": "twin"})
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "p.jsonl"


def start(prompts: Path, output: Path, workers: int, **options) -> subprocess.Popen:
    command = [sys.executable, str(DRIVER), str(prompts), str(output), str(workers), str(MODEL.threads)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < end
        time.sleep(0.02)


def clips(output: Path) -> list[Path]:
    return [path for path in (output / "clips").rglob("*") if path.is_file()]


def workers_of(output: Path) -> list[int]:
    events = map(json.loads, (output / "events.jsonl").read_text().splitlines())
    return [event["process"] for event in events if event["event"] == "worker ready"]


@pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")
def test_nothing_is_lost_and_nothing_twice_whatever_happens_and_all_bytes_are_those_of_generate(tmp_path):
    prompts, output = write_prompts(tmp_path), tmp_path / "out"

    # Signal 9 for a worker, then for the driver.
    killed = start(prompts, output, 2)
    until(lambda: len(clips(output)) >= 6, killed)
    os.kill(workers_of(output)[0], signal.SIGKILL)
    until(lambda: len(clips(output)) >= 40, killed)
    killed.kill()
    killed.communicate()
    assert 40 <= len(clips(output)) < 122

    # A disk that takes no clip: stopped in one sentence, nothing half-written.
    held = clips(output)
    limited = start(
        prompts, output, 1, preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (FILE_BYTES,) * 2)
    )
    said, _ = limited.communicate(timeout=300)
    assert limited.returncode == 2
    assert "could not write" in said
    assert clips(output) == held
    assert not (output / "work").exists()

    # Two drivers at once for the rest.
    pair = [start(prompts, output, 1) for _ in range(2)]
    for one in pair:
        one.communicate(timeout=300)
    assert [one.returncode for one in pair] == [1, 1]

    ledger = Ledger(output)
    plan = plan_batch(prompts, MODEL, RowDefaults())
    failures = {failure["prompt"]: failure for failure in ledger.failures()}
    good = [job for job in plan.jobs if job.prompt != POISON]
    assert len(good) == 61
    assert set(failures) == {POISON, ""} or set(failures) == {POISON, "a small red circle"}
    assert failures.pop(POISON)["error"].startswith("the worker died twice over this row")
    assert "broken.png" in failures.popitem()[1]["error"]
    names = sorted(path.name for path in clips(output))
    assert names == sorted(f"{job.key}{suffix}" for job in good for suffix in (".json", ".mp4"))
    assert not (output / "work").exists()
    manifest = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    assert len(manifest) == 62
    assert sum(row["id"] == "twin" for row in manifest) == 1

    # Row by row, by the function that `generate` calls, and a row of each kind by the command itself.
    pipeline = demo_pipeline()
    for job in good:
        write_clip(pipeline, job.prompt, job.settings, tmp_path / "one.mp4", negative=job.negative)
        assert (tmp_path / "one.mp4").read_bytes() == ledger.video(job.key).read_bytes(), job.key
    for job in (good[0], good[1], good[4], good[8]):
        s = job.settings
        assert main(["generate", job.prompt, "-o", str(tmp_path / "g.mp4"), "--fps", s.fps, "--width", "16", "--height",
                     "16", "--steps", "1", "--keyframes", str(s.keyframes), "--seed", str(s.seed), "--device", "cpu",
                     *(["--negative", job.negative] if job.negative else [])]) == 0  # fmt: skip
        assert (tmp_path / "g.mp4").read_bytes() == ledger.video(job.key).read_bytes()
