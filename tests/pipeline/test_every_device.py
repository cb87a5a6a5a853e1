"""The whole demo, a whole release 1.1 and the metrics on a device that is neither CPU nor CUDA."""

import pytest
import torch
from support import release, soroban

from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings

PROMPT = "a large purple triangle moves up on a white background"
# Both devices round in float32, by other formulas: kernels here, plain torch there.
CLOSE = {"atol": 1e-3, "rtol": 1e-3}


def assert_same_clip(make, **options):
    there, here = (make(device=device).generate(PROMPT, **options) for device in (soroban.NAME, "cpu"))
    for name in ("keyframes", "latents", "frames"):
        out, expected = getattr(there, name), getattr(here, name)
        assert out.device.type == "cpu"
        torch.testing.assert_close(out, expected, **CLOSE)
    assert expected.std() > 0.01


@pytest.mark.parametrize("parity", ["strict", "fast"])
def test_demo_gives_the_clip_of_the_cpu(parity):
    settings = Settings(fps="medium", steps=2, keyframes=3)
    assert_same_clip(lambda **to: demo_pipeline(parity=parity, **to), settings=settings, negative="a red circle")


def test_demo_decodes_by_video_and_in_little_memory_as_the_cpu_does():
    settings = Settings(fps="low", steps=2, keyframes=6, is_mended=True, is_stacked=False)
    assert_same_clip(lambda **to: demo_pipeline(keeps_networks=False, **to), settings=settings, decoder="video_movq")


def test_release_v11_gives_the_clip_of_the_cpu(tmp_path):
    release.write(tmp_path, "1.1")
    settings = Settings(fps="medium", width=8, height=8, steps=1)
    assert_same_clip(lambda **to: Pipeline.from_folder(tmp_path, **to), settings=settings)


def test_memory_of_a_run_is_given_back():
    before = soroban.LEDGER.alive
    pipeline = demo_pipeline(device=soroban.NAME)
    pipeline.generate(PROMPT, Settings(fps="low", steps=1, keyframes=2))
    assert soroban.LEDGER.peak > soroban.LEDGER.alive > before
    del pipeline
    assert soroban.LEDGER.alive == before


def test_generate_says_where_it_runs_and_what_that_took(tmp_path, capsys):
    arguments = ["generate", PROMPT, "-o", tmp_path / "a.gif", "--fps", "low", "--steps", "1", "--keyframes", "2"]
    assert main([*map(str, arguments), "--device", soroban.NAME]) == 0
    said = capsys.readouterr()
    assert "running on soroban (a soroban) in float16" in said.err
    assert "GiB on the device" in said.out


def test_generate_refuses_sixteen_bits_that_the_device_has_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(soroban, "ABSENT", {*soroban.ABSENT, torch.bfloat16})
    arguments = ["generate", PROMPT, "-o", str(tmp_path / "a.gif"), "--device", soroban.NAME, "--dtype", "bfloat16"]
    assert main(arguments) == 2
    assert "in which a soroban computes, got bfloat16: choose float32 or float16" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
