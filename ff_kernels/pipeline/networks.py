"""The networks of a folder of weights: loaded when a stage first needs one, kept or freed, in the dtype it takes."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..checkpoints.folder import ModelFiles
from ..checkpoints.folding import Parity, require_parity
from ..checkpoints.loading import Loaded, load_contents
from ..errors import CheckpointError
from ..models.unet import UNet
from ..runtime.devices import wide_dtype
from ..runtime.parking import park


class Networks:
    """Opened files of a folder by stage (``Kind.stage``).

    Args:
        models: the files, see ``find_models``.
        device: where networks run.
        dtype: dtype of the U-Nets.
        parity: "strict" or "fast", see ``Pipeline``.
        keeps_all: keep every network that was loaded; False frees them before the next one is.
    """

    def __init__(
        self, models: ModelFiles, device: torch.device, dtype: torch.dtype, parity: Parity, *, keeps_all: bool
    ) -> None:
        require_parity(parity)
        self.models, self.device, self.dtype, self.parity, self.keeps_all = models, device, dtype, parity, keeps_all
        self.loaded: dict[str, Loaded] = {}
        self._conditioners: dict[str, AbstractContextManager] = {}

    def get(self, stage: str) -> Loaded:
        """Return the loaded file of a stage, loading it the first time."""
        if stage not in self.loaded:
            if not self.keeps_all:
                self.loaded.clear()
                self._conditioners.clear()
            loaded = load_contents(
                *self.models.require(stage), stage=stage, device=self.device, dtype=self.dtype_of(stage),
                parity=self.parity,
            )  # fmt: skip
            if isinstance(loaded.network, UNet) and self.device.type != "cpu":
                # A third of a U-Net's weights is read once per run; on the device they would only take room.
                self._conditioners[stage] = park(loaded.network.conditioner_modules(), self.device)
            self.loaded[stage] = loaded
        return self.loaded[stage]

    def dtype_of(self, stage: str) -> torch.dtype:
        """Return the dtype that a stage computes in: float16 overflows in a text encoder of Flan-UL2's size."""
        if "movq" in stage:
            return torch.float32
        return wide_dtype(self.device, self.dtype) if stage in ("text_encoder", "projection") else self.dtype

    def conditioner(self, stage: str) -> AbstractContextManager:
        """Return what to enter while the stage's network prepares: it brings parked weights to the device."""
        return self._conditioners.get(stage, nullcontext())

    def projection(self) -> nn.Module:
        """Return the projection of text: a file of its own or, release 1.0, part of the keyframe file."""
        stage = "projection" if "projection" in self.models.files else "keyframe"
        projection = self.get(stage).projection
        if projection is None:
            self.models.require("projection")
        return projection.to(self.dtype_of("text_encoder"))

    def null_embedding(self, stage: str) -> Tensor:
        """Return the learned empty text that a stage's file holds.

        Raises:
            CheckpointError: if it holds none.
        """
        null_embedding = self.get(stage).null_embedding
        if null_embedding is None:
            raise CheckpointError(
                f"expected a null embedding in the {stage} file of '{self.models.folder}', found none: convert the "
                "authors' file, which holds one"
            )
        return null_embedding.to(self.dtype)
