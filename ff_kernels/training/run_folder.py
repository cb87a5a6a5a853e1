"""One folder per training: results of finished stages, cached latents and what resumes an unfinished stage."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import atomic_path
from .loop import Curriculum, Draw, TrainConfig, Training, train


@dataclass(frozen=True)
class TrainRun:
    """Where stages read and write, and how they compute.

    Attributes:
        folder: one ``<stage>.safetensors`` per finished stage, ``state/`` with what resumes an unfinished one.
        device: where to train.
        dtype: float32, or bfloat16 where that is faster.
        share: factor on every stage's steps and clips; the shipped weights have 1.
        seed: of the data and noise of every stage; the shipped weights have 0.
    """

    folder: Path
    device: torch.device
    dtype: torch.dtype
    share: float = 1.0
    seed: int = 0

    def scaled(self, count: int) -> int:
        """Return a number of steps or clips at this run's share."""
        return max(1, round(count * self.share))

    def result(self, stage: str) -> Path:
        """File of a finished stage."""
        return self.folder / f"{stage}.safetensors"

    def train(
        self,
        stage: str,
        objective: nn.Module,
        source: Draw | Curriculum,
        config: TrainConfig,
        on_step: Callable[[Training], bool | None] | None = None,
    ) -> None:
        """Train an objective to its end, or to where ``on_step`` stops it; it then has the averaged weights.

        Nothing but the state is kept; arguments as of ``loop.train``.
        """
        config = replace(config, steps=self.scaled(config.steps))
        checkpoint = self.folder / "state" / f"{stage}.pt"
        averages = train(
            objective.to(self.device), source, config, checkpoint, dtype=self.dtype, seed=self.seed, on_step=on_step
        )
        objective.cpu().load_state_dict(averages, strict=False)

    def save(self, stage: str, weights: dict[str, Tensor]) -> None:
        """Write the result of a stage."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The tied token embedding has a second name, which safetensors would refuse.
        kept = {k: v.clone().contiguous() for k, v in weights.items() if not k.endswith("encoder.embed_tokens.weight")}
        with atomic_path(self.result(stage)) as path:
            save_file(kept, path)

    def read(self, stage: str) -> dict[str, Tensor]:
        """Return the weights of a finished stage.

        Raises:
            CheckpointError: if the stage is not finished.
        """
        if not self.result(stage).exists():
            raise CheckpointError(
                f"expected the result of stage {stage!r} in {self.result(stage)}, found no such file: train stage "
                f"{stage} first"
            )
        return load_file(self.result(stage))

    def load(self, stage: str, objective: nn.Module) -> None:
        """Load the weights of a finished stage into an objective that holds all of them or some.

        Raises:
            CheckpointError: if the stage is not finished, or the objective holds none of them.
        """
        weights = self.read(stage)
        unknown = objective.load_state_dict(weights, strict=False).unexpected_keys
        if len(unknown) == len(weights):
            raise CheckpointError(
                f"expected weights of {type(objective).__name__} in {self.result(stage)}, found none "
                f"({', '.join(sorted(weights)[:3])}): remove the file and train stage {stage!r} again"
            )

    def cached(self, name: str, source: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return tensors and plain data that are made the first time, and anew where ``source`` names another origin.

        Args:
            name: of the file.
            source: what the data are made of, such as a fingerprint.
            make: returns them by name.
        """
        path = self.folder / "state" / f"{name}.pt"
        if path.exists():
            stored = torch.load(path, weights_only=True)
            if stored.pop("source", None) == source:
                return stored
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save({"source": source, **made}, temporary)
        return made
