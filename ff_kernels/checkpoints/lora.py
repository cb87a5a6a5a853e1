"""LoRA files: small additions to the weights of a U-Net, read in the community's names and merged before folding."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError, InputError
from ..files import atomic_path
from .detection import NAMES, NULL_KEY, PROJECTION_PREFIXES, Kind, is_lora
from .folder import ModelFiles
from .reading import METADATA_KEY, Contents, read_contents, require_as_released

# What loaders put before the names of a U-Net's layers; names after the last one have underscores for dots.
_PREFIXES = ("diffusion_model.", "unet.", "lora_unet_")
_PARTS = {
    "lora_up.weight": "up",
    "lora_down.weight": "down",
    "lora_B.weight": "up",
    "lora_A.weight": "down",
    "alpha": "alpha",
    "diff": "diff",
    "diff_b": "diff_b",
}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Lora:
    """A LoRA file.

    Attributes:
        path: the file, for messages.
        layers: name of a layer to its parts: ``up [O, r]``, ``down [r, ...]`` and ``alpha``, or whole differences
            ``diff`` of its weight and ``diff_b`` of its bias.
        metadata: all that the file says of itself.
    """

    path: Path
    layers: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, str]

    @property
    def made_for(self) -> dict[str, Any]:
        """Stage, family and layers as our trainer writes them, empty for a file from elsewhere."""
        try:
            stored = json.loads(self.metadata.get(METADATA_KEY, "{}"))
        except ValueError:
            return {}
        return stored if isinstance(stored, dict) else {}

    @property
    def stage(self) -> str:
        """The stage of the U-Net it belongs to; a file that does not say is taken for one of keyframes."""
        return str(self.made_for.get("stage", "keyframe"))

    @property
    def ranks(self) -> list[int]:
        """The ranks of the layers, without repetition, rising."""
        return sorted({parts["down"].shape[0] for parts in self.layers.values() if "down" in parts})


def read_lora(path: str | Path) -> Lora:
    """Open a LoRA file.

    Raises:
        CheckpointError: if the file is no safetensors file, or holds anything but LoRA layers of a U-Net.
    """
    contents = read_contents(path)
    if contents.path.suffix.lower() != ".safetensors" or not is_lora(contents.tensors):
        raise CheckpointError(
            f"expected a LoRA in safetensors in '{contents.path}', got other weights: name the file that training wrote"
        )
    with safe_open(contents.path, framework="pt") as file:
        metadata = file.metadata() or {}
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in contents.tensors.items():
        part = next((ending for ending in _PARTS if key.endswith(f".{ending}")), None)
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")
        if part is None or tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"expected plain LoRA layers (lora_up, lora_down, alpha) in '{contents.path}', got '{key}' of "
                f"{tensor.dtype}: train or convert it as a plain LoRA of a U-Net"
            )
        name = key.removesuffix(f".{part}").removeprefix(prefix)
        layers.setdefault(name, {})[_PARTS[part]] = tensor
    for name, parts in layers.items():
        if ("up" in parts) != ("down" in parts):
            raise CheckpointError(
                f"expected both halves of layer '{name}' in '{contents.path}', got {', '.join(sorted(parts))}: "
                "download or train it again"
            )
    return Lora(contents.path, layers, metadata)


def write_lora(
    path: Path, layers: Mapping[str, tuple[Tensor, Tensor]], scale: float, kind: Kind, notes: Mapping[str, object]
) -> None:
    """Write a LoRA in the names that ComfyUI's loader takes for every layer.

    Args:
        path: file to write, complete or not at all.
        layers: name of a layer to ``up [O, r]`` and ``down [r, I * kernel]``.
        scale: what the products are multiplied by; a layer's alpha is this times its rank.
        kind: of the U-Net that it belongs to.
        notes: what else is worth knowing: base, layers, steps; kept as text.
    """
    tensors, rank = {}, max(down.shape[0] for _, down in layers.values())
    for name, (up, down) in layers.items():
        tensors[f"diffusion_model.{name}.lora_up.weight"] = up.contiguous()
        tensors[f"diffusion_model.{name}.lora_down.weight"] = down.contiguous()
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(scale * len(down))
    base = f"fusionframes-{kind.family}-{kind.stage}"
    metadata = {
        "format": "pt",
        METADATA_KEY: json.dumps({"stage": kind.stage, "family": kind.family, **notes}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{base}/lora",
        "modelspec.title": path.stem,
        "ss_base_model_version": base,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{scale * rank:g}",
    }
    with atomic_path(path) as temporary:
        # Not save_file, which lets nobody but its writer read the file.
        temporary.write_bytes(save(tensors, metadata))


def merge_lora(contents: Contents, lora: Lora, strength: float) -> Contents:
    """Return a U-Net's file with a LoRA added: ``weight + strength * alpha / r * up @ down``, in the stored dtype.

    Raises:
        CheckpointError: if a layer of the LoRA is none of the network's, or has another shape.
    """
    if strength == 0:
        return contents
    require_as_released(contents, "a LoRA, which names them and changes their weights")
    weights = {k: v for k, v in contents.tensors.items() if k != NULL_KEY and not k.startswith(PROJECTION_PREFIXES)}
    merged = dict(contents.tensors)
    flat_names = {key.rpartition(".")[0].replace(".", "_"): key.rpartition(".")[0] for key in weights}
    for name, parts in lora.layers.items():
        layer = name if f"{name}.weight" in weights else flat_names.get(name, name)
        for target, difference in _differences(parts).items():
            key = f"{layer}.{target}"
            if key not in weights or weights[key].numel() != difference.numel():
                found = list(weights[key].shape) if key in weights else "no such layer"
                raise CheckpointError(
                    f"expected a LoRA of this network in '{lora.path}', got '{name}' of {difference.numel()} values, "
                    f"where '{contents.path}' has {found}: take the one that it was trained with"
                )
            weight = merged[key]
            merged[key] = (weight.float() + strength * difference.reshape(weight.shape)).to(weight.dtype)
    changed = {key for key in merged if merged[key] is not contents.tensors[key]}
    return replace(contents, tensors=merged, changed=contents.changed | changed)


def _differences(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    if "up" in parts:
        up, down = parts["up"].float().flatten(1), parts["down"].float().flatten(1)
        scale = parts["alpha"].item() / len(down) if "alpha" in parts else 1.0
        out["weight"] = scale * (up @ down)
    if "diff" in parts:
        out["weight"] = out.get("weight", 0) + parts["diff"].float()
    if "diff_b" in parts:
        out["bias"] = parts["diff_b"].float()
    return out


def parse_choice(text: str) -> tuple[Path, float]:
    """Part ``FILE[:strength]``; a strength that is left out is 1.

    Raises:
        InputError: if what stands behind the colon is no finite number.
    """
    name, colon, strength = text.rpartition(":")
    # A colon before a path is that of a Windows drive, or part of a file's name.
    if not colon or Path(text).exists() or strength.startswith(("\\", "/")):
        return Path(text), 1.0
    try:
        value = float(strength)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise InputError(f"expected FILE:strength with a number as strength, got '{text}': write FILE:0.8")
    return Path(name), value


def with_loras(models: ModelFiles, choices: Sequence[tuple[str | Path, float]]) -> ModelFiles:
    """Return model files with LoRAs merged into the U-Nets that they were made for, one after the other.

    Raises:
        CheckpointError: if a file is no LoRA, or fits no U-Net of the folder.
    """
    files = dict(models.files)
    for path, strength in choices:
        lora = read_lora(path)
        family = lora.made_for.get("family", models.family)
        if family != models.family or lora.stage not in files:
            raise CheckpointError(
                f"expected a LoRA for release {models.family} in '{lora.path}', got one of the {lora.stage} U-Net of "
                f"release {family}: load the weights that it was trained with"
            )
        contents, kind = files[lora.stage]
        files[lora.stage] = (merge_lora(contents, lora, strength), kind)
    return replace(models, files=files)


def describe_lora(lora: Lora) -> list[str]:
    """Return the lines of ``info`` about a LoRA."""
    tensors = [tensor for parts in lora.layers.values() for tensor in parts.values()]
    lines = [
        f"file        {lora.path}",
        f"what        LoRA of {NAMES.get(lora.stage, lora.stage)}, rank {', '.join(map(str, lora.ranks)) or '-'}",
        f"parameters  {sum(tensor.numel() for tensor in tensors):,} in {len(lora.layers)} layers",
        f"memory      {sum(tensor.nbytes for tensor in tensors) / 1e6:.2f} MB as stored",
        "needs       the weights that it was trained with: generate --lora FILE:STRENGTH, or LoraLoaderModelOnly",
    ]
    return lines + [f"  {key} = {value}" for key, value in lora.made_for.items()]
