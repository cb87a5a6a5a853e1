import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from fusionframes.ff_kernels.errors import CheckpointError, InputError, ShapeError
from fusionframes.ff_kernels.metrics.features import alexnet, vgg16
from fusionframes.ff_kernels.metrics.lpips import build_lpips, load_lpips

CHANNELS = {alexnet: (64, 192, 384, 256, 256), vgg16: (64, 128, 256, 512, 512)}


def random_tensors(build, seed=0):
    torch.manual_seed(seed)
    tensors = {f"features.{key}": value.double() for key, value in build().features.state_dict().items()}
    return tensors | {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1).double() for i, n in enumerate(CHANNELS[build])}


def double_lpips(build):
    return build_lpips(random_tensors(build)).double(), random_tensors(build)


def alexnet_taps(x, w):
    taps = [F.relu(F.conv2d(x, w["features.0.weight"], w["features.0.bias"], stride=4, padding=2))]
    for index, padding, pools in ((3, 2, True), (6, 1, True), (8, 1, False), (10, 1, False)):
        x = F.max_pool2d(taps[-1], 3, 2) if pools else taps[-1]
        taps.append(F.relu(F.conv2d(x, w[f"features.{index}.weight"], w[f"features.{index}.bias"], padding=padding)))
    return taps


def vgg16_taps(x, w):
    taps = []
    for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        x = F.max_pool2d(taps[-1], 2) if taps else x
        for index in block:
            x = F.relu(F.conv2d(x, w[f"features.{index}.weight"], w[f"features.{index}.bias"], padding=1))
        taps.append(x)
    return taps


def by_hand(a, b, w, taps_of):
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]).double(), torch.tensor([0.458, 0.448, 0.450]).double()
    pair = [taps_of(((2 * x - 1).permute(1, 2, 0) - shift).div(scale).permute(2, 0, 1)[None], w) for x in (a, b)]
    total = 0.0
    for i, (p, q) in enumerate(zip(*pair, strict=True)):
        weight = w[f"lin{i}.model.1.weight"].flatten()
        for y in range(p.shape[2]):
            for x in range(p.shape[3]):
                u, v = p[0, :, y, x], q[0, :, y, x]
                difference = u / (u.norm() + 1e-10) - v / (v.norm() + 1e-10)
                total += (weight * difference**2).sum() / (p.shape[2] * p.shape[3])
    return total


@pytest.mark.parametrize(("build", "taps_of", "side"), [(alexnet, alexnet_taps, 39), (vgg16, vgg16_taps, 17)])
def test_lpips_agrees_with_the_definition_in_double_precision(build, taps_of, side):
    # The constants of the release are stored in float32, so both sides round them alike.
    network, w = double_lpips(build)
    a, b = torch.rand(2, 1, 3, side, side, dtype=torch.float64)
    assert network(a, b).item() == pytest.approx(by_hand(a[0], b[0], w, taps_of).item(), rel=1e-6)


def test_lpips_is_zero_for_equal_symmetric_and_per_picture():
    network, _ = double_lpips(alexnet)
    a, b = torch.rand(2, 3, 3, 40, 40, dtype=torch.float64)
    assert network(a, a).tolist() == [0, 0, 0]
    assert torch.allclose(network(a, b), network(b, a), rtol=1e-12)
    assert torch.allclose(network(a, b)[1:2], network(a[1:2], b[1:2]), rtol=1e-9)
    assert (network(a, b) > 0).all()


def test_lpips_from_safetensors_and_from_torchscript(tmp_path):
    tensors = {k: v.float() for k, v in random_tensors(alexnet).items()}
    save_file(tensors | {"classifier.1.weight": torch.zeros(2)}, str(tmp_path / "lpips.safetensors"))
    a, b = torch.rand(2, 2, 3, 40, 40)
    assert load_lpips(tmp_path / "lpips.safetensors")(a, b).shape == (2,)

    class Gap(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    class One(nn.Module):
        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return a

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Gap()).save(str(tmp_path / "gap.pt"))
        torch.jit.script(One()).save(str(tmp_path / "one.pt"))
    assert torch.allclose(load_lpips(tmp_path / "gap.pt")(a, b), 2 * (a - b).abs().mean((1, 2, 3)))
    with pytest.raises(InputError, match=r"one\.pt' to compare"):
        load_lpips(tmp_path / "one.pt")(a, b)


def test_wrong_tensors_are_named():
    tensors = random_tensors(alexnet)
    with pytest.raises(CheckpointError, match="found none"):
        build_lpips({})
    with pytest.raises(CheckpointError, match=r"found \[8, 3, 3, 3\]"):
        build_lpips({"features.0.weight": torch.zeros(8, 3, 3, 3)})
    with pytest.raises(CheckpointError, match=r"'lin2\.model\.1\.weight' missing"):
        build_lpips({k: v for k, v in tensors.items() if not k.startswith("lin2")})
    with pytest.raises(CheckpointError, match="'wings' unknown"):
        build_lpips(tensors | {"wings": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"lin1\.model\.1\.weight' of \[1, 192, 1, 1\].*found \[1, 128, 1, 1\]"):
        build_lpips(tensors | {"lin1.model.1.weight": torch.zeros(1, 128, 1, 1)})


def test_small_pictures_are_named():
    network = build_lpips(random_tensors(alexnet))
    with pytest.raises(ShapeError, match=r"31 or more pixels.*got 40 x 30"):
        network(torch.rand(1, 3, 30, 40), torch.rand(1, 3, 30, 40))
    assert network(torch.rand(1, 3, 31, 31), torch.rand(1, 3, 31, 31)).isfinite().all()
