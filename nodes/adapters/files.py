"""Files of a model folder as checked weights, ready to be put into a network of core's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...ff_kernels.checkpoints.detection import NAMES, NULL_KEY, Kind, detect
from ...ff_kernels.checkpoints.loading import check_contents, load_projection
from ...ff_kernels.checkpoints.reading import Contents, latent_space, read_contents, whole_of
from ...ff_kernels.errors import CheckpointError
from ...ff_kernels.models.configs import LatentSpace
from ...ff_kernels.models.text_encoder import TextProjection

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


@dataclass(frozen=True)
class Weights:
    """An opened and checked file; tensors are memory-mapped until they are copied.

    Attributes:
        path: the file.
        kind: what it is.
        tensors: of the network.
        null_embedding: ``[D]``, where the file has one.
        space: how its latents relate to pixels.
    """

    path: Path
    kind: Kind
    tensors: dict[str, Tensor]
    null_embedding: Tensor | None
    space: LatentSpace

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of most of the stored values."""
        counts: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
        return max(counts, key=counts.__getitem__)

    @property
    def parameters(self) -> int:
        """Number of stored values."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def _open(path: Path, node_input: str) -> tuple[Contents, Kind]:
    try:
        contents = read_contents(whole_of(path))
        return contents, detect(contents)
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
    contents, kind = _open(path, node_input)
    if kind.stage not in stages:
        wanted = " or ".join(NAMES[stage] for stage in stages)
        raise CheckpointError(
            f"{node_input} expected {wanted}, got {kind.title} in '{contents.path.name}': open that one with "
            f"{NODE_OF[kind.stage]}"
        )
    _, tensors, extras = check_contents(contents, kind)
    null = extras.get(NULL_KEY)
    return Weights(contents.path, kind, tensors, None if null is None else null.reshape(-1), latent_space(contents))


def open_projection(path: Path, node_input: str) -> TextProjection:
    """Open the text projection of a keyframe checkpoint (1.0) or of its own file (1.1).

    Raises:
        CheckpointError: if the file holds none.
    """
    contents, kind = _open(path, node_input)
    projection = load_projection(contents)
    if projection is None:
        raise CheckpointError(
            f"{node_input} expected text projections, got {kind.title} in '{contents.path.name}' without any: choose "
            "the keyframe checkpoint (release 1.0) or t5_projections (release 1.1)"
        )
    return projection
