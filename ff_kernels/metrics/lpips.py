"""LPIPS: distance of two pictures in the features of a network that was trained on something else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError, ShapeError
from .features import Backbone, alexnet, load_tensors, load_torchscript, run_program, vgg16
from .fidelity import check_pair

# Two batches of pictures [N, 3, H, W] in 0..1 to [N] distances.
Distance = Callable[[Tensor, Tensor], Tensor]

_CHANNELS = {"AlexNet": (64, 192, 384, 256, 256), "VGG16": (64, 128, 256, 512, 512)}
_BUILD = {"AlexNet": alexnet, "VGG16": vgg16}
# Smallest side that leaves a pixel after the last pooling.
_MIN_SIDE_PX = {"AlexNet": 31, "VGG16": 16}
# ImageNet's mean and deviation for pixels in -1..1, as the LPIPS release rounds them.
_MEAN, _DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class LPIPS(nn.Module):
    """Weighted squared differences of channel-normalised activations, mean over positions, sum over five taps.

    Args:
        name: "AlexNet" or "VGG16".

    Source: Zhang et al. 2018, equation 1; column LPIPS of the paper's table 3.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.backbone: Backbone = _BUILD[name]()
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(1, n, 1, 1)) for n in _CHANNELS[name]])
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).reshape(1, 3, 1, 1), persistent=False)

    def _activations(self, pictures: Tensor) -> list[Tensor]:
        taps = self.backbone((pictures * 2 - 1 - self.mean) / self.deviation)
        return [tap / (tap.square().sum(1, keepdim=True).sqrt() + _EPSILON) for tap in taps]

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return ``[N]`` distances of pictures ``[N, 3, H, W]`` in 0..1; 0 for equal pictures.

        Raises:
            ShapeError: if the shapes are wrong or differ, or a side is too small for the network.
            InputError: if a batch has another type or range of pixels.
        """
        first, second = check_pair(first, second)
        least = _MIN_SIDE_PX[self.name]
        if min(first.shape[-2:]) < least:
            raise ShapeError(
                f"expected sides of {least} or more pixels for LPIPS with {self.name}, got "
                f"{first.shape[-1]} x {first.shape[-2]}: give larger frames"
            )
        like = self.weights[0]
        taps = zip(
            self._activations(first.to(like.device, like.dtype)),
            self._activations(second.to(like.device, like.dtype)),
            self.weights,
            strict=True,
        )
        return sum((weight * (a - b).square()).sum(1).mean((1, 2)) for a, b, weight in taps)


def build_lpips(tensors: dict[str, Tensor], where: str = "the given tensors") -> LPIPS:
    """Return LPIPS from the tensors of a backbone and of its five 1x1 layers.

    Args:
        tensors: torchvision's ``features.N.weight`` and ``features.N.bias`` of AlexNet or VGG16, and
            ``lin{0..4}.model.1.weight`` ``[1, C, 1, 1]`` of the LPIPS release; ``classifier.*`` is left out.
        where: file to name in an error.

    Raises:
        CheckpointError: if tensors are missing, left over or of another shape.
    """
    first = tensors.get("features.0.weight")
    name = {(64, 3, 11, 11): "AlexNet", (64, 3, 3, 3): "VGG16"}.get(() if first is None else tuple(first.shape))
    if name is None:
        found = "none" if first is None else list(first.shape)
        raise CheckpointError(
            f"expected AlexNet's or VGG16's 'features.0.weight' in {where}, found {found}: join torchvision's network "
            "and the lin layers of LPIPS in one safetensors file"
        )
    network = LPIPS(name)
    wanted = {f"features.{key}": value for key, value in network.backbone.features.state_dict().items()}
    wanted |= {f"lin{i}.model.1.weight": weight.data for i, weight in enumerate(network.weights)}
    given = {key: value for key, value in tensors.items() if not key.startswith("classifier.")}
    for verdict, keys in (("missing", wanted.keys() - given), ("unknown", given.keys() - wanted)):
        if keys:
            raise CheckpointError(
                f"expected the {len(wanted)} tensors of LPIPS with {name} in {where}, found '{min(keys)}' {verdict}: "
                "join torchvision's 'features' and the lin layers of LPIPS in one safetensors file"
            )
    for key, value in wanted.items():
        if value.shape != given[key].shape:
            raise CheckpointError(
                f"expected '{key}' of {list(value.shape)} in {where}, found {list(given[key].shape)}: "
                f"take the lin layers made for {name}"
            )
        value.copy_(given[key])
    return network.eval().requires_grad_(False)


def load_lpips(path: str | Path, device: str | torch.device = "cpu") -> Distance:
    """Return LPIPS from the user's file.

    Args:
        path: safetensors with the tensors of ``build_lpips``; or a torchscript archive, which runs its own code,
            that takes two batches ``[N, 3, H, W]`` in -1..1 and returns N distances, such as a traced network
            of the LPIPS release.
        device: where it runs.

    Returns:
        Two batches ``[N, 3, H, W]`` in 0..1 to ``[N]``.

    Raises:
        CheckpointError: if the file is missing, damaged or holds something else.
    """
    path = Path(path)
    if path.suffix.lower() == ".safetensors":
        with torch.no_grad():
            return build_lpips(load_tensors(path), f"'{path}'").to(device)
    module = load_torchscript(path, device)

    def distance(first: Tensor, second: Tensor) -> Tensor:
        first, second = check_pair(first, second)
        return _run(module, path, first.to(device).float() * 2 - 1, second.to(device).float() * 2 - 1)

    return distance


def _run(module: Any, path: Path, first: Tensor, second: Tensor) -> Tensor:
    task = f"'{path}' to compare two pictures of {list(first.shape)}"
    out = run_program(lambda: module(first, second), task, "give an LPIPS network")
    if not isinstance(out, Tensor) or out.numel() != len(first):
        found = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(f"expected {len(first)} distances from '{path}', got {found}: give an LPIPS network")
    return out.reshape(-1)
