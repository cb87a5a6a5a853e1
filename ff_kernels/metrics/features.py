"""Feature networks from the user's own files: torchscript archives as they are, LPIPS networks as safetensors.

Nothing is unpickled. But a torchscript archive is a program: loading and calling it runs the code inside, with
the rights of this process. Open only archives that you made or trust.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckpointError, InputError

TORCHSCRIPT_SUFFIXES = (".pt", ".pth", ".ts", ".torchscript")
I3D_SIDE_PX = 224
_TRUST = "a torchscript archive runs its own code, so open only one that you made or trust"


class Features(Protocol):
    """A network that describes pictures ``[N, 3, H, W]`` or clips ``[N, 3, T, H, W]``, RGB in 0..1, as ``[N, D]``."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return ``[N, D]``."""


def load_torchscript(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """Open a torchscript archive for evaluation. It runs its own code: trust its origin.

    Args:
        path: a file written by ``torch.jit.save``.
        device: where its tensors go.

    Returns:
        The module, in evaluation mode, without gradients.

    Raises:
        CheckpointError: if the file is missing or is no torchscript archive; a plain pickle is never loaded.
    """
    path = Path(path)
    check_file(path)
    if path.suffix.lower() not in TORCHSCRIPT_SUFFIXES:
        raise CheckpointError(
            f"expected a torchscript archive that ends in {', '.join(TORCHSCRIPT_SUFFIXES)}, got '{path}': save the "
            f"network with torch.jit.save ({_TRUST})"
        )
    try:
        with warnings.catch_warnings():
            # torch 2.13 prefers torch.export, but the published feature networks are torchscript.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"expected a torchscript archive in '{path}', got another or damaged file, which is not unpickled: save "
            f"the network with torch.jit.save ({_TRUST})"
        ) from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def load_tensors(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    path = Path(path)
    check_file(path)
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"expected safetensors in '{path}', got a damaged or other file: save it again"
        ) from error


def check_file(path: Path) -> None:
    """Raise a ``CheckpointError`` unless ``path`` is a file."""
    # Unlike Path.is_file this is False, not an error, for a name that no file can have.
    if not os.path.isfile(path):
        raise CheckpointError(f"expected a network's file at '{path}', found none: check the path")


def _argument_names(module: Any) -> set[str]:
    return {argument.name for argument in module.forward.schema.arguments}


def run_program(call: Callable[[], Any], task: str, advice: str) -> Any:
    """Return what the user's own network says, or name in one sentence what it was asked and why it failed.

    Args:
        call: runs the network.
        task: what was expected of it, such as "'net.pt' to take [1, 3, 16, 64, 64]".
        advice: what to do.

    Raises:
        InputError: if the network fails.
    """
    try:
        return call()
    # A torchscript program raises what it likes, torch.jit.Error (a RuntimeError) for most things.
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:160]
        raise InputError(f"expected {task}, got '{reason}': {advice}") from error


def _checked(path: Path, call: Callable[[Tensor], Any]) -> Features:
    def features(pixels: Tensor) -> Tensor:
        task = f"'{path}' to take {list(pixels.shape)}"
        out = run_program(lambda: call(pixels), task, "give the network of this metric")
        if not isinstance(out, Tensor) or out.ndim < 2 or len(out) != len(pixels):
            found = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(
                f"expected features [{len(pixels)}, D] from '{path}', got {found}: give a network that returns one "
                "vector per item"
            )
        return out.flatten(1)

    return features


def load_i3d(path: str | Path, device: str | torch.device = "cpu") -> Features:
    """Return I3D features for FVD from a torchscript archive.

    An archive whose ``forward`` names ``rescale``, ``resize`` and ``return_features``, as the one of the StyleGAN-V
    protocol does, is given bytes as floats in 0..255 and all three switched on. Any other one is given clips
    resized to 224 x 224 pixels (bilinear) in -1..1.

    Args:
        path: the archive; it runs its own code.
        device: where it runs.

    Returns:
        Clips ``[N, 3, T, H, W]`` in 0..1 to features ``[N, D]``.

    Raises:
        CheckpointError: if the file is missing or no archive.

    Source: FVD of the StyleGAN-V protocol, which the paper names.
    """
    module = load_torchscript(path, device)
    has_switches = {"rescale", "resize", "return_features"} <= _argument_names(module)

    def call(clips: Tensor) -> Any:
        clips = clips.to(device, torch.float32)
        if has_switches:
            return module(to_bytes_scale(clips), rescale=True, resize=True, return_features=True)
        return module(resize_frames(clips, I3D_SIDE_PX) * 2 - 1)

    return _checked(Path(path), call)


def load_inception(path: str | Path, device: str | torch.device = "cpu") -> Features:
    """Return class probabilities for the Inception Score from a torchscript archive.

    Clips go in as bytes, as floats in 0..255, at their own size, as the C3D network of the StyleGAN-V protocol
    takes them; what comes out must be probabilities that sum to one.

    Args:
        path: the archive; it runs its own code.
        device: where it runs.

    Returns:
        Clips ``[N, 3, T, H, W]`` in 0..1 to probabilities ``[N, K]``.

    Raises:
        CheckpointError: if the file is missing or no archive.

    Source: the paper's IS, on the first 16 frames of each clip.
    """
    module = load_torchscript(path, device)
    return _checked(Path(path), lambda clips: module(to_bytes_scale(clips.to(device, torch.float32))))


def to_bytes_scale(pixels: Tensor) -> Tensor:
    """Return pixels in 0..1 as whole numbers 0..255 in floating point, what a file of 8 bits would hold."""
    return (pixels.clamp(0, 1) * 255).round()


def resize_frames(clips: Tensor, side_px: int) -> Tensor:
    """Return clips ``[N, 3, T, H, W]`` with frames of ``side_px`` x ``side_px`` pixels, bilinear."""
    N, C, T = clips.shape[:3]
    frames = clips.transpose(1, 2).flatten(0, 1)  # [N * T, 3, H, W]
    frames = F.interpolate(frames, size=(side_px, side_px), mode="bilinear", align_corners=False)
    return frames.reshape(N, T, C, side_px, side_px).transpose(1, 2)


class Backbone(nn.Module):
    """The convolutions of AlexNet or VGG16 up to the last LPIPS tap, with torchvision's names.

    Args:
        layers: the ``features`` in order.
        taps: indices of the activations that LPIPS compares.
    """

    def __init__(self, layers: list[nn.Module], taps: tuple[int, ...]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.taps = taps

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the tapped activations ``[N, C_i, H_i, W_i]`` of normalised pictures ``[N, 3, H, W]``."""
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found


def alexnet() -> Backbone:
    """Return AlexNet's convolutions with five taps of 64, 192, 384, 256 and 256 channels."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for before, after in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return Backbone(layers, (1, 4, 7, 9, 11))


def vgg16() -> Backbone:
    """Return VGG16's convolutions with five taps of 64, 128, 256, 512 and 512 channels."""
    layers: list[nn.Module] = []
    taps, channels = [], 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2, 2)] if layers else []
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        taps.append(len(layers) - 1)
    return Backbone(layers, tuple(taps))
