import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from fusionframes.ff_kernels.cli import generate as command
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo import WEIGHTS
from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.media import video
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.runtime.plan import Budget
from fusionframes.ff_kernels.stages.presets import PRESETS

PROMPT = "a large purple triangle moves up on a white background"
QUICK = ["--steps", "2", "--fps", "low"]


def generate(*arguments: str | Path) -> int:
    return main(["generate", *map(str, arguments)])


def frames_of(path: Path) -> list:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_generate_writes_a_playable_file(tmp_path, capsys, suffix):
    assert generate(PROMPT, "-o", tmp_path / f"out{suffix}", *QUICK) == 0
    frames = frames_of(tmp_path / f"out{suffix}")
    assert len(frames) == 5
    assert (frames[0].width, frames[0].height) == (64, 64)
    printed = capsys.readouterr()
    assert "5 frames of 64 x 64 at 2 frames per second, seed 0" in printed.out
    assert "keyframes" in printed.out
    assert "peak memory" in printed.out
    assert printed.err.count("using the demo model") == 1
    assert_matches(printed.err, r"plan: text encoder \d.* MB; keyframes .* MB; decoding .* MB")


def test_generate_within_a_budget_says_the_plan_and_makes_the_same_clip(tmp_path, capsys):
    options = ["--steps", "1", "--fps", "low", "--strict"]
    for name, more in (("a", []), ("b", ["--vram", "0.0095"]), ("c", ["--low-memory"])):
        assert generate(PROMPT, "-o", tmp_path / f"{name}.gif", *options, *more) == 0
        printed = capsys.readouterr().err
        assert ("streamed from" in printed) == bool(more)
        assert ("streamed from the file" in printed) == (name == "c")
    contents = [(tmp_path / f"{name}.gif").read_bytes() for name in "abc"]
    assert contents[1] == contents[2]
    assert len(contents[0]) == pytest.approx(len(contents[1]), rel=0.05)


def test_generate_medium_level_png_sequence_and_storyboard(tmp_path):
    sheet = tmp_path / "sheet.png"
    assert generate(PROMPT, "-o", tmp_path / "f.png", "--steps", "2", "--fps", "medium", "--storyboard", sheet) == 0
    assert len(list(tmp_path.glob("f_*.png"))) == 17
    with Image.open(sheet) as picture:
        assert picture.width >= 3 * 128


def test_generate_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        assert generate(PROMPT, "-o", tmp_path / f"{name}.gif", *QUICK, "--seed", "5") == 0
    assert generate(PROMPT, "-o", tmp_path / "c.gif", *QUICK, "--seed", "6") == 0
    contents = [(tmp_path / f"{name}.gif").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]


def test_generate_writes_the_frames_of_the_pipeline(tmp_path):
    assert generate(PROMPT, "-o", tmp_path / "f.png", "--steps", "2", "--fps", "medium") == 0
    frames = demo_pipeline().generate(PROMPT, Settings(steps=2, fps="medium")).frames
    files = video.write_frames(frames, tmp_path / "g.png", 8)
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in sorted(tmp_path.glob("f_*.png"))]


class ArrivedError(Exception):
    """Ends a run where the model would be opened."""


OPTIONS = """--model M --fps medium --width 72 --height 48 --preset fast --steps 7
--interpolation-steps 3 --solver ddim --interpolation-solver dpmpp_2m
--decoder-dtype 16-bit --guide-between 0.3 5 --guidance 1.5 --image-guidance 2.5
--motion extreme --interpolation-guidance 0.3 --keyframes 4 --seed 11 --mend --low-memory --strict --no-graphs
--dtype bfloat16 --device cpu --negative red --decoder video --vram 2.5 --ram 16 --prompt-cache P --quant int8"""


def test_generate_options_reach_the_model(tmp_path, monkeypatch):
    given = {}

    class Recorded(Pipeline):
        def __init__(self, models, **options):
            given.update(options, folder=models.folder)
            super().__init__(models, **options)

        def resolve(self, settings):
            given["settings"] = settings
            return super().resolve(settings)

        def sample(self, prompt, settings, **options):
            options.pop("progress")
            given.update(options, prompt=prompt)
            raise ArrivedError

    shutil.copytree(WEIGHTS, tmp_path / "M")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fusionframes.ff_kernels.pipeline.pipeline.Pipeline", Recorded)
    monkeypatch.setattr("fusionframes.ff_kernels.pipeline.planning.plan_run", lambda *given, **options: [])
    with pytest.raises(ArrivedError):
        generate(PROMPT, "-o", "o.gif", *OPTIONS.split())
    assert given == {
        "folder": Path("M"), "device": torch.device("cpu"), "dtype": torch.bfloat16, "keeps_networks": False,
        "parity": "strict", "uses_graphs": False, "prompt": PROMPT, "negative": "red", "picture": None,
        "decoder": "video_movq", "budget": Budget(vram=25 * 10**8, ram=16 * 10**9, is_smallest=True),
        "prompt_cache": Path("P"), "rounds": True, "loras": [],
        "settings": Settings(
            fps="medium", width=72, height=48, preset="fast", steps=7, interpolation_steps=3, solver="ddim",
            interpolation_solver="dpmpp_2m", guided=(0.3, 5.0), narrow_decoder=True, guidance_scale=1.5,
            image_guidance=2.5, interpolation_guidance=0.3, motion_score=100, keyframes=4, seed=11, is_mended=True,
            is_stacked=False,
        ),
    }  # fmt: skip
    assert all(value != getattr(Settings(), name) for name, value in vars(given["settings"]).items()
               if name not in ("noise_level", "preset", "solver", "interpolation_solver", "guided"))  # fmt: skip


def test_generate_says_which_steps_were_taken_and_warns_of_too_few_as_released(tmp_path, capsys):
    fast = ["--fps", "low", "--preset", "fast", "--solver", "ddim"]
    assert generate(PROMPT, "-o", tmp_path / "a.gif", *fast) == 0
    printed = capsys.readouterr()
    assert f"seed 0, preset fast: {PRESETS['fast'].steps} steps of ddim" in printed.out
    assert "warning" not in printed.err
    assert generate(PROMPT, "-o", tmp_path / "b.gif", *QUICK) == 0
    printed = capsys.readouterr()
    assert "preset released: 2 steps" in printed.out
    assert "warning: the release's formula falls apart with 2 steps" in printed.err


WRONG = {
    "preset": (["--preset", "turbo"], "invalid choice: 'turbo'"),
    "solver": (["--solver", "euler"], "invalid choice: 'euler'"),
    "interpolation_steps": (["--interpolation-steps", "0"], "1 to 1000 steps, got 0"),
    "guide_between": (["--guide-between", "5", "0.3"], "rising ratios of noise to signal, got 5 and 0.3"),
    "width": (["--width", "65"], "width.*multiple of 8 pixels, got 65"),
    "height": (["--height", "0"], "height.*got 0"),
    "model": (["--model", "nowhere"], r"no folder at 'nowhere': .* \(--model\)"),
    "steps_zero": (["--steps", "0"], "1 to 1000 steps, got 0"),
    "steps_negative": (["--steps", "-4"], "got -4"),
    "steps_word": (["--steps", "many"], "invalid int value: 'many'"),
    "seed": (["--seed", "-1"], "got -1"),
    "device": (["--device", "abacus"], "got 'abacus'"),
    "image_missing": (["--image", "absent.png"], "absent.png"),
    "image_for_v10": (["--image", "IMAGE"], r"release 1\.0"),
    "fps": (["--fps", "60"], "invalid choice: '60'"),
    "storyboard": (["--storyboard", "absent/sheet.png"], "absent"),
    "storyboard_suffix": (["--storyboard", "sheet.txt"], r"sheet\.txt"),
    "vram_word": (["--vram", "much"], "gigabytes above 0, got 'much'"),
    "ram_zero": (["--ram", "0"], "gigabytes above 0, got '0'"),
    "vram_small": (["--vram", "0.004"], r"expected a budget of at least \d+\.\d\d MB on the device"),
    "unknown": (["--wings", "2"], "wings"),
}


@pytest.mark.parametrize("name", WRONG)
def test_generate_wrong_argument_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "IMAGE.png")
    arguments, named = WRONG[name]
    arguments = ["IMAGE.png" if a == "IMAGE" else a for a in arguments]
    before = sorted(tmp_path.iterdir())
    assert generate(PROMPT, "-o", "out.mp4", *QUICK, *arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fusionframes: ")]
    assert_matches(line, named)
    assert sorted(tmp_path.iterdir()) == before


def assert_matches(line: str, pattern: str) -> None:
    assert re.search(pattern, line), line


@pytest.mark.parametrize(("output", "named"), [("out.avi", r"out\.avi"), ("absent/out.mp4", "absent"), ("out", "out")])
def test_generate_wrong_output_is_found_before_any_work(tmp_path, monkeypatch, capsys, output, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_open_pipeline", lambda options: pytest.fail("work began"))
    assert generate(PROMPT, "-o", output) == 2
    assert_matches(capsys.readouterr().err, named)


@pytest.mark.parametrize("prompt", ["", "   "])
def test_generate_empty_prompt_is_refused(tmp_path, capsys, prompt):
    assert generate(prompt, "-o", tmp_path / "out.mp4") == 2
    assert "empty text" in capsys.readouterr().err


def test_generate_unreadable_image_is_named(tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    assert generate(PROMPT, "-o", tmp_path / "out.mp4", "--image", tmp_path / "broken.png") == 2
    assert "broken.png" in capsys.readouterr().err


def test_generate_full_disk_leaves_nothing(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert generate(PROMPT, "-o", tmp_path / "out.mp4", *QUICK) == 2
    assert_matches(capsys.readouterr().err, "space")
    assert list(tmp_path.iterdir()) == []


def test_generate_interrupted_while_writing_leaves_nothing(tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(video.os, "replace", interrupt)
    assert generate(PROMPT, "-o", tmp_path / "out.mp4", *QUICK) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_generate_ctrl_c_ends_with_130_and_no_file(tmp_path):
    command = [sys.executable, "-m", "fusionframes.ff_kernels", "generate", PROMPT, "-o", tmp_path / "out.mp4"]
    command += ["--steps", "1000"]
    # A shell that started the tests in the background has them ignore the interrupt, and children inherit that.
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=heard) as process:
        deadline = time.monotonic() + 120
        seen = ""
        while "keyframes" not in seen and time.monotonic() < deadline:
            seen += process.stderr.read(1)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        process.wait(60)
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []
