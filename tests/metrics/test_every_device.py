"""``fusionframes evaluate`` with every network on a device that is neither CPU nor CUDA."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from support import soroban
from torch import nn

from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.media.video import write_frames
from fusionframes.ff_kernels.metrics import features

CHANNELS = (64, 192, 384, 256, 256)


class Classes(nn.Module):
    """Probabilities of classes for clips in 0..255, by a small convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 8, 3)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.conv(clips / 255).amax((2, 3, 4)).softmax(1)


def write_lpips(path):
    tensors = {f"features.{key}": value for key, value in features.alexnet().features.state_dict().items()}
    save_file(tensors | {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate(CHANNELS)}, str(path))


def write_clips(folder):
    folder.mkdir()
    for name in "ab":
        write_frames(torch.rand(16, 40, 40, 3), folder / f"{name}.png", 10)


def test_evaluate_gives_the_numbers_of_the_cpu(tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    write_lpips(tmp_path / "lpips.safetensors")
    # Archives of torchscript run outside of Python, where this device is not.
    network = Classes()
    monkeypatch.setattr(features, "load_torchscript", lambda path, device: copy.deepcopy(network).to(device))
    monkeypatch.setattr(features, "_argument_names", lambda module: set())
    for name in ("true", "made"):
        write_clips(tmp_path / name)
    networks = ["--lpips", "lpips.safetensors", "--inception", "classes.pt", "--i3d", "classes.pt"]
    networks = [name if name.startswith("--") else str(tmp_path / name) for name in networks]
    told = []
    for device in (soroban.NAME, "cpu"):
        before = soroban.LEDGER.peak
        arguments = ["evaluate", str(tmp_path / "true"), str(tmp_path / "made"), *networks, "--splits", "1"]
        assert main([*arguments, "--json", "--device", device]) == 0
        told.append(json.loads(capsys.readouterr().out)["measures"])
        assert (soroban.LEDGER.peak > before) == (device == soroban.NAME)
    there, here = ({measure["name"]: measure["mean"] for measure in measures} for measures in told)
    assert there == pytest.approx(here, rel=1e-4)
    assert {"LPIPS", "FVD", "IS", "PSNR"} <= set(here)
