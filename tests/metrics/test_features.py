import warnings

import pytest
import torch
from torch import nn

from fusionframes.ff_kernels.errors import CheckpointError, InputError
from fusionframes.ff_kernels.metrics.features import (
    alexnet,
    load_i3d,
    load_inception,
    load_tensors,
    load_torchscript,
    resize_frames,
    vgg16,
)


class Switched(nn.Module):
    """Returns what it was given, as the I3D of the protocol is called."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        switches = torch.tensor([float(rescale), float(resize), float(return_features)])
        return torch.cat([x.amax((1, 2, 3, 4))[:, None], switches.expand(x.shape[0], 3)], 1)


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.amax((1, 2, 3, 4)), x.amin((1, 2, 3, 4)), torch.full([x.shape[0]], x.shape[4])], 1)


class Wrong(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean()


def save(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def test_i3d_with_switches_gets_bytes_and_all_switches(tmp_path):
    features = load_i3d(save(Switched(), tmp_path / "i3d.pt"))
    assert features(torch.full((2, 3, 4, 8, 8), 0.5)).tolist() == [[128, 1, 1, 1]] * 2


def test_i3d_without_switches_gets_resized_clips_around_zero(tmp_path):
    clips = torch.zeros(1, 3, 4, 8, 8)
    clips[..., :4] = 1
    assert load_i3d(save(Plain(), tmp_path / "i3d.pt"))(clips).tolist() == [pytest.approx([1, -1, 224], abs=1e-5)]


def test_inception_gets_bytes_at_their_own_size(tmp_path):
    assert load_inception(save(Plain(), tmp_path / "c3d.pt"))(torch.ones(1, 3, 4, 8, 8)).tolist() == [[255, 255, 8]]


def test_resizing_keeps_frames_apart():
    clips = torch.arange(3.0).reshape(1, 1, 3, 1, 1).expand(1, 3, 3, 6, 6)
    assert resize_frames(clips, 4).mean((0, 1, 3, 4)).tolist() == [0, 1, 2]


def test_backbones_have_the_published_parameter_counts_and_taps():
    count = {build: sum(p.numel() for p in build().parameters()) for build in (alexnet, vgg16)}
    assert count == {alexnet: 2_469_696, vgg16: 14_714_688}  # torchvision's `features` of both
    assert [tap.shape[1] for tap in alexnet()(torch.rand(1, 3, 32, 32))] == [64, 192, 384, 256, 256]
    assert [tap.shape[1] for tap in vgg16()(torch.rand(1, 3, 16, 16))] == [64, 128, 256, 512, 512]


def test_wrong_files_are_named_and_never_unpickled(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pt"):
        load_torchscript(tmp_path / "absent.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.pt")
    with pytest.raises(CheckpointError, match=r"pickle\.pt.*not unpickled.*runs its own code"):
        load_torchscript(tmp_path / "pickle.pt")
    (tmp_path / "other.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"other\.bin.*torch\.jit\.save"):
        load_torchscript(tmp_path / "other.bin")
    (tmp_path / "damaged.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors"):
        load_tensors(tmp_path / "damaged.safetensors")


def test_networks_of_another_kind_are_named(tmp_path):
    with pytest.raises(InputError, match=r"expected features \[2, D\].*wrong\.pt.*got \[\]"):
        load_inception(save(Wrong(), tmp_path / "wrong.pt"))(torch.ones(2, 3, 4, 8, 8))
    with pytest.raises(InputError, match=r"linear\.pt' to take \[2, 3, 4, 8, 8\]"):
        load_inception(save(nn.Linear(5, 2), tmp_path / "linear.pt"))(torch.ones(2, 3, 4, 8, 8))
