import json
import re
import warnings

import pytest
import torch
from torch import nn

from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.errors import InputError, ShapeError
from fusionframes.ff_kernels.media.video import write_frames
from fusionframes.ff_kernels.metrics.consistency import temporal_curves
from fusionframes.ff_kernels.metrics.evaluation import Networks, evaluate, measure_pair
from fusionframes.ff_kernels.metrics.fidelity import fidelity_curves
from fusionframes.ff_kernels.metrics.frechet import fvd
from fusionframes.ff_kernels.metrics.inception import inception_score


def clip(seed, frames=18, side=16):
    """Pixels that PNG keeps exactly."""
    torch.manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, side, side)).float() / 255


def write(folder, clips):
    folder.mkdir()
    for name, frames in clips.items():
        write_frames(frames.permute(0, 2, 3, 1), folder / f"{name}.png", 10)
    return folder


def features(clips):
    return clips.mean((3, 4)).flatten(1)


def probabilities(clips):
    return (clips.mean((2, 3, 4)) * 40).softmax(1)[:, None].repeat(1, 2, 1).flatten(1) / 2


def gap(a, b):
    return (a - b).abs().mean((1, 2, 3))


@pytest.fixture
def sets(tmp_path):
    true = {name: clip(i) for i, name in enumerate("abc")}
    made = {name: (frames + clip(9)) / 2 for name, frames in true.items()}
    made = {name: (frames * 255).round() / 255 for name, frames in made.items()}
    return true, made, write(tmp_path / "true", true), write(tmp_path / "made", made)


def test_every_metric_agrees_with_the_functions_on_whole_clips(sets):
    true, made, reference, folder = sets
    steps = []
    result = evaluate(
        reference, folder, Networks(gap, features, probabilities), splits=2, progress=lambda *step: steps.append(step)
    )
    found = {measure.name: measure for measure in result.measures}
    assert (result.clips, result.missing, steps) == (3, (), [(1, 3), (2, 3), (3, 3)])
    for name in ("PSNR", "SSIM", "MSE"):
        curves = torch.stack([fidelity_curves(true[key], made[key])[name] for key in true])
        assert found[name].mean == pytest.approx(curves.mean().item(), rel=1e-5)
        assert found[name].low <= found[name].mean <= found[name].high
        assert found[name].per_frame == pytest.approx(curves.mean(0).tolist(), rel=1e-4)
    assert found["LPIPS"].mean == pytest.approx(torch.stack([gap(true[k], made[k]) for k in true]).mean().item())
    for clips, suffix in ((made, ""), (true, ", reference")):
        for name, curve in temporal_curves(clips["a"], gap).items():
            expected = [temporal_curves(frames, gap)[name].mean().item() for frames in clips.values()]
            assert found[name + suffix].mean == pytest.approx(sum(expected) / 3, rel=1e-4)
            assert len(found[name + suffix].per_frame) == len(curve)
            assert found[name + suffix].first == 1
    assert found["FVD"].mean == pytest.approx(fvd(true.values(), made.values(), features), rel=1e-5)
    assert "3 against 3 clips, fewer than the 2,048" in found["FVD"].note
    rows = torch.cat([probabilities(frames[:16].transpose(0, 1)[None]) for frames in made.values()])
    assert found["IS"].mean == pytest.approx(inception_score(rows, 2).mean, rel=1e-5)
    assert found["IS"].low is None


def test_missing_networks_and_pairs_are_said(sets):
    _, _, reference, folder = sets
    result = evaluate(reference, folder)
    assert [phrase.split(":")[0] for phrase in result.missing] == ["LPIPS and neighbour LPIPS", "FVD", "IS"]
    assert {measure.name for measure in result.measures} >= {"PSNR", "SSIM", "MSE", "warping error"}
    (folder / "a_0000.png").rename(folder / "z_0000.png")
    for i in range(1, 18):
        (folder / f"a_{i:04}.png").unlink()
    alone = evaluate(reference, folder, Networks(i3d=None), is_paired=False)
    assert any("'z': fewer than 3 frames" in phrase for phrase in alone.missing)
    assert any(phrase.startswith("PSNR, SSIM, MSE and LPIPS") for phrase in alone.missing)
    assert "PSNR" not in {measure.name for measure in alone.measures}
    with pytest.raises(InputError, match="clip 'z': expected 16 or more frames for FVD and IS, got 1"):
        evaluate(reference, folder, Networks(i3d=features), is_paired=False)


@pytest.mark.parametrize(
    ("frames", "error", "match"),
    [
        (clip(0, frames=17), InputError, "clip 'a': expected 18 frames as in .*, got 17"),
        (clip(0, frames=30), InputError, "expected 18 frames as in .*, got 30"),
        (clip(0, side=20), ShapeError, "expected frames of 16 x 16 pixels as in .*got 20 x 20"),
    ],
    ids=["shorter", "longer", "larger"],
)
def test_unequal_clips_are_named(sets, tmp_path, frames, error, match):
    with pytest.raises(error, match=match):
        evaluate(write(tmp_path / "one", {"a": clip(0)}), write(tmp_path / "other", {"a": frames}))


def test_too_many_splits_are_named(sets):
    with pytest.raises(InputError, match=r"1\.\.3 splits .* got 10"):
        evaluate(*sets[2:], Networks(inception=probabilities))


def test_pair_of_tensors_for_nodes():
    curves = measure_pair(clip(0), clip(1), gap)
    assert list(curves) == ["PSNR", "SSIM", "MSE", "LPIPS"]
    assert all(curve.shape == (18,) for curve in curves.values())


class Mean(nn.Module):
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.mean((3, 4)).flatten(1).softmax(1)


class Gap(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))


@pytest.fixture
def archives(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, module in (("mean", Mean()), ("gap", Gap())):
            torch.jit.script(module).save(str(tmp_path / f"{name}.pt"))
    mean, lpips = str(tmp_path / "mean.pt"), str(tmp_path / "gap.pt")
    return ["--lpips", lpips, "--i3d", mean, "--inception", mean, "--splits", "2", "--device", "cpu"]


def test_command_prints_the_table_and_what_was_not_measured(sets, capsys):
    _, _, reference, folder = sets
    assert main(["evaluate", str(reference), str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 clips of ")
    assert [line.split()[0] for line in lines[1:5]] == ["measure", "PSNR", "SSIM", "MSE"]
    assert sum(line.startswith("not measured: ") for line in lines) == 3
    assert lines[-1] == "networks are given by --lpips, --i3d, --inception"


def test_command_with_networks_prints_json_and_writes_the_plot(sets, archives, tmp_path, capsys):
    _, _, reference, folder = sets
    plot = tmp_path / "curves.png"
    assert main(["evaluate", str(reference), str(folder), *archives, "--json", "--plot", str(plot)]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["clips"] == 3
    assert read["not_measured"] == []
    assert {"PSNR", "LPIPS", "FVD", "IS", "neighbour LPIPS"} <= {measure["name"] for measure in read["measures"]}
    assert plot.stat().st_size > 1000


def test_command_compares_two_videos_and_reports_equal_ones(tmp_path, capsys):
    for name in ("one", "two"):
        write_frames(clip(0, frames=4).permute(0, 2, 3, 1), tmp_path / f"{name}.mp4", 10)
    assert main(["evaluate", str(tmp_path / "one.mp4"), str(tmp_path / "two.mp4")]) == 0
    printed = capsys.readouterr().out
    assert "without 4 of 4 frames that equal the reference" in printed
    assert "inf dB" in printed


WRONG = {
    "reference": (["absent", "made"], "found nothing"),
    "names": (["true", "other"], r"compare without pairs \(--unpaired\)"),
    "lpips": (["true", "made", "--lpips", "absent.pt"], r"absent\.pt"),
    "i3d": (["true", "made", "--i3d", "i3d.safetensors"], "found none"),
    "plot": (["true", "made", "--plot", "curves.txt"], r"plot that ends .*curves\.txt"),
    "device": (["true", "made", "--device", "abacus"], "abacus"),
}


@pytest.mark.parametrize("name", WRONG)
def test_command_with_a_wrong_argument_is_one_sentence(sets, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "other", {"x": clip(0), "y": clip(1)})
    arguments, named = WRONG[name]
    assert main(["evaluate", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fusionframes: ")]

    assert re.search(named, line), line
