"""The demo model on Ray, with a worker and then the driver ended by signal 9, and finished in shards without Ray."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionframes.ff_kernels.batch.ledger import Ledger
from fusionframes.ff_kernels.batch.ray_pool import connect
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.pipeline.writing import write_clip

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
PROMPT = "a large purple triangle moves up on a white background"
CLIPS = 24
QUICK = ["--fps", "low", "--width", "16", "--height", "16", "--steps", "1", "--keyframes", "2", "--device", "cpu",
         "--threads", "1"]  # fmt: skip


def command(folder: Path, *more: str) -> list[str]:
    return ["batch", str(folder / "p.jsonl"), "-o", str(folder / "out"), *QUICK, *more]


def events(output: Path, name: str) -> list[dict]:
    path = output / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def until_done(count: int, output: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while len([e for e in events(output, "done") if e["task"] == "clip"]) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_actors_survive_kills_and_shards_finish_what_ray_began_byte_for_byte(tmp_path):
    output = tmp_path / "out"
    rows = [{"prompt": PROMPT, "seed": i} for i in range(CLIPS)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Sockets lie below it, whose paths have at most 107 bytes.
    home = Path("/tmp") / f"ff-ray-{os.getpid()}"
    asked = [sys.executable, "-m", "fusionframes.ff_kernels", *command(tmp_path, "--ray", "local", "--workers", "2")]
    around = {**os.environ, "RAY_TMPDIR": str(home)}
    process = subprocess.Popen(asked, env=around, stderr=subprocess.PIPE, text=True)
    until_done(3, output, process)
    victim = events(output, "worker ready")[0]
    os.kill(victim["process"], signal.SIGKILL)
    until_done(8, output, process)
    assert [event["worker"] for event in events(output, "worker lost")] == [victim["worker"]]
    process.kill()
    process.communicate()
    shutil.rmtree(home, ignore_errors=True)
    held = sum(1 for _ in Ledger(output).records())
    assert 8 <= held < CLIPS

    assert main(command(tmp_path, "--shard", "0/2")) == 0
    middle = sum(1 for _ in Ledger(output).records())
    assert main(command(tmp_path, "--shard", "1/2")) == 0
    assert held <= middle < CLIPS

    records = list(Ledger(output).records())
    assert sorted(record["rows"][0]["id"] for record in records) == list(range(1, CLIPS + 1))
    assert sorted(path.suffix for path in (output / "clips").rglob("*.*")) == [".json"] * CLIPS + [".mp4"] * CLIPS
    assert not (output / "work").exists()
    pipeline = demo_pipeline()
    for record in records:
        settings = pipeline.resolve(Settings(**record["settings"]))
        write_clip(pipeline, PROMPT, settings, tmp_path / "one.mp4")
        assert (tmp_path / "one.mp4").read_bytes() == Ledger(output).video(record["key"]).read_bytes()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere:port"])
def test_ray_that_is_not_there_is_one_sentence(tmp_path, address):
    with pytest.raises(InputError, match=f"cannot join Ray at '{address}'"):
        connect(address, 1)
