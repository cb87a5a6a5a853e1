"""Files of a model folder as checked weights, ready to be put into a network of core's."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ...ff_kernels.checkpoints.detection import NAMES, NULL_KEY, Kind, detect, split_tensors
from ...ff_kernels.checkpoints.loading import check_contents, load_projection
from ...ff_kernels.checkpoints.reading import CORE_TEXT, CORE_VAE, Contents, latent_space, read_contents, whole_of
from ...ff_kernels.errors import CheckpointError
from ...ff_kernels.models.configs import LatentSpace
from ...ff_kernels.models.text_encoder import TextProjection
from .quantised import Packed, QuantReader, parted, widened

# Which node opens which stage, for messages.
NODE_OF = {
    "keyframe": "FusionFrames Load Model",
    "interpolation": "FusionFrames Load Model",
    "masked": "FusionFrames Load Model",
    "movq": "FusionFrames Load MoVQ",
    "video_movq": "FusionFrames Load MoVQ",
    "text_encoder": "FusionFrames Load Text Encoder",
    "projection": "FusionFrames Load Text Encoder (as its projection)",
}

# What to take of a checkpoint that core saved whole, by the stage that is asked for.
PARTS = {"movq": CORE_VAE, "video_movq": CORE_VAE, "text_encoder": CORE_TEXT}


@dataclass(frozen=True)
class Weights:
    """An opened and checked file; tensors are memory-mapped until they are copied.

    Attributes:
        path: the file.
        kind: what it is.
        tensors: of the network; in the places of quantised weights tensors without data.
        null_embedding: ``[D]``, where the file has one.
        space: how its latents relate to pixels.
        tokenizer: bytes of a SentencePiece model, where the file has one.
        kept: names of the weights that core's layers keep quantised, and the weights.
        loose: those that are quantised in the file and that core has no layer for.
        is_folded: whether the layers of the file are folded.
    """

    path: Path
    kind: Kind
    tensors: dict[str, Tensor]
    null_embedding: Tensor | None
    space: LatentSpace
    tokenizer: bytes | None = None
    kept: dict[str, Packed] = field(default_factory=dict)
    loose: dict[str, Packed] = field(default_factory=dict)
    is_folded: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of most of the stored values, quantised ones aside."""
        counts: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + (0 if tensor.is_meta else tensor.numel())
        return max(counts, key=counts.__getitem__)

    def for_core(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what core's layers load: kept weights as they are in the file, loose ones widened to ``dtype``."""
        # What is widened is in no file, so that core's pager has to keep it in memory.
        return parted(widened(self.tensors, self.loose, dtype), self.kept)

    def widened(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return tensors without quantised ones, which are widened to ``dtype``; the others as stored."""
        return widened(self.tensors, {**self.kept, **self.loose}, dtype)

    def as_filed(self) -> dict[str, Tensor]:
        """Return the tensors that the file holds, for saving."""
        return parted(self.tensors, {**self.kept, **self.loose})

    @property
    def parameters(self) -> int:
        """Number of stored values."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def _open(path: Path, node_input: str, part: str | None, reader: QuantReader) -> tuple[Contents, Kind]:
    try:
        contents = read_contents(whole_of(path), part, reader)
        kind = detect(contents)
        # Small, and not for layers of core's.
        _, extras = split_tensors(contents)
        wide = widened(extras, reader.of(extras), torch.float32)
        return replace(contents, tensors={**contents.tensors, **wide}), kind
    except CheckpointError as error:
        raise CheckpointError(f"{node_input}: {error}") from error


def open_weights(path: Path, stages: Sequence[str], node_input: str) -> Weights:
    """Open a file that must be one of ``stages``; any shard stands for its whole set.

    Args:
        path: a file that exists.
        stages: see ``Kind.stage``.
        node_input: the input the file was chosen in, for messages.

    Raises:
        CheckpointError: naming the input, what was expected, what was found and which node wants it.
    """
    reader = QuantReader()
    contents, kind = _open(path, node_input, PARTS.get(stages[0]), reader)
    if kind.stage not in stages:
        wanted = " or ".join(NAMES[stage] for stage in stages)
        raise CheckpointError(
            f"{node_input} expected {wanted}, got {kind.title} in '{contents.path.name}': open that one with "
            f"{NODE_OF[kind.stage]}"
        )
    network, tensors, extras = check_contents(contents, kind, is_as_released=not contents.is_folded)
    null = extras.get(NULL_KEY)
    null = None if null is None else null.reshape(-1)
    packed = reader.of(tensors)
    layers = {name: network.get_submodule(name.removesuffix(".weight")) for name in packed}
    kept = {name: weight for name, weight in packed.items() if weight.is_kept_by(layers[name])}
    loose = {name: weight for name, weight in packed.items() if name not in kept}
    space, is_folded = latent_space(contents), contents.is_folded
    return Weights(contents.path, kind, tensors, null, space, contents.tokenizer, kept, loose, is_folded)


def open_projection(path: Path, node_input: str) -> TextProjection:
    """Open the text projection of a keyframe checkpoint (1.0) or of its own file (1.1).

    Raises:
        CheckpointError: if the file holds none.
    """
    contents, kind = _open(path, node_input, CORE_TEXT, QuantReader())
    projection = load_projection(contents)
    if projection is None:
        raise CheckpointError(
            f"{node_input} expected text projections, got {kind.title} in '{contents.path.name}' without any: choose "
            "the keyframe checkpoint (release 1.0) or t5_projections (release 1.1)"
        )
    return projection


def open_first_projection(paths: Sequence[Path], node_input: str) -> TextProjection:
    """Open the text projection of the first file that has one, where files of one name lie in several folders.

    Raises:
        CheckpointError: about the first file, if none has.
    """
    errors = []
    for path in paths:
        try:
            return open_projection(path, node_input)
        except CheckpointError as error:
            errors.append(error)
    raise errors[0]
