"""No command writes over a file that it reads or writes besides, and the refusal comes before any work."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fusionframes.ff_kernels.cli import generate as command
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo import WEIGHTS

PROMPT = "a large red circle"
TAKEN = {
    "storyboard_is_a_frame": ["-o", "f.png", "--storyboard", "f_0000.png"],
    "storyboard_is_a_later_frame_by_another_path": ["-o", "f.png", "--storyboard", "sub/../f_00012.png"],
    "storyboard_is_the_picture": ["-o", "f.mp4", "--storyboard", "start.png", "--image", "start.png"],
    "storyboard_is_a_weights_file": ["-o", "f.mp4", "--storyboard", "model/notes.png", "--model", "model"],
    "frame_is_the_picture": ["-o", "start.png", "--image", "start_0003.png"],
    "output_is_a_file_of_the_model": ["-o", "model/old.mp4", "--model", "model"],
    "output_is_the_picture": ["-o", "moving.gif", "--image", "moving.gif"],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("sub", "model"):
        Path(name).mkdir()
    for name in ("start.png", "start_0003.png", "moving.gif", "model/notes.png"):
        Image.new("RGB", (4, 4)).save(name)
    Path("model/old.mp4").write_bytes(b"a clip")
    monkeypatch.setattr(command, "_open_pipeline", lambda options: pytest.fail("work began"))
    return tmp_path


@pytest.mark.parametrize("name", TAKEN)
def test_generate_writes_over_nothing_of_its_own(place, capsys, name):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert main(["generate", PROMPT, *TAKEN[name]]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_generate_sees_through_links(place, capsys):
    Path("link.png").symlink_to("start.png")
    assert main(["generate", PROMPT, "-o", "f.mp4", "--image", "start.png", "--storyboard", "link.png"]) == 2
    assert "would overwrite 'link.png'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["-o", "f.png", "--storyboard", "f.png"], ["-o", "f.png", "--storyboard", "f_1.png"]]
)
def test_generate_names_that_only_look_alike_are_taken(place, arguments):
    with pytest.raises(pytest.fail.Exception, match="work began"):
        main(["generate", PROMPT, *arguments])


@pytest.mark.parametrize("plot", ["true.gif.png", "clips/a_0000.png", "network.png"])
def test_evaluate_plot_writes_over_no_clip_and_no_network(place, capsys, plot):
    Path("clips").mkdir()
    shutil.copy("start.png", "clips/a_0000.png")
    shutil.copy("start.png", "network.png")
    shutil.copy("moving.gif", "true.gif.png")
    arguments = ["true.gif.png", "clips", "--plot", plot, "--lpips", "network.png"]
    assert main(["evaluate", *arguments]) == 2
    assert f"the plot would overwrite '{plot}'" in capsys.readouterr().err


def test_convert_writes_over_no_source(place, capsys):
    source = next(WEIGHTS.glob("vae/*_demo_movq.safetensors"))
    Path("shards").mkdir()
    for target in ("movq.safetensors", "shards/movq.safetensors"):
        shutil.copy(source, target)
        assert main(["convert", str(Path(target).parent) if "/" in target else target, target]) == 2
        assert "the target would overwrite" in capsys.readouterr().err
        assert Path(target).read_bytes() == source.read_bytes()


def test_bench_history_that_is_a_folder_is_refused_before_anything_is_timed(place, capsys):
    assert main(["bench", "--history", "sub", "--workload", "decode-cpu"]) == 2
    assert "got the folder 'sub'" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "named"), [
    (["--keyframes", "181"], "180"), (["--device", "meta"], "'meta'"), (["--device", "meta:0"], "'meta:0'"),
    (["--storyboard", "s.webp", "--width", "16384", "--keyframes", "4"], "sides up to 16,383"),
    (["--negative", " "], "empty text"),
])  # fmt: skip
def test_generate_refuses_before_anything_runs(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "fusionframes.ff_kernels.pipeline.pipeline.Pipeline.sample", lambda *args, **kwargs: pytest.fail("work began")
    )
    assert main(["generate", PROMPT, "-o", "o.mp4", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fusionframes: ")]
    assert named in line
    assert list(tmp_path.iterdir()) == []
