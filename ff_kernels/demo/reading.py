"""What text encoder and pooling are trained for before the keyframe network depends on them: to read captions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.text_encoder import TextEncoder, TextProjection, project_context
from ..training.losses import KeyframeNoise


class CaptionReading(nn.Module):
    """Captions to the five attributes, read from the mean of the projected context.

    A minute of this before the joint training gives the U-Net a context that already tells captions apart.
    """

    def __init__(self, encoder: TextEncoder, projection: TextProjection, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.text = nn.ModuleDict({"encoder": encoder, "projection": projection})
        self.heads = nn.ModuleList(nn.Linear(projection[0].out_features, count) for count in classes)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Return the summed cross-entropy of ``labels`` ``[B, attributes]``."""
        context, _ = project_context(self.text["encoder"](ids, mask), mask, self.text["projection"])
        pooled = context.mean(dim=1)
        return sum(F.cross_entropy(head(pooled), labels[:, i]) for i, head in enumerate(self.heads))


class PoolingReading(nn.Module):
    """Captions to the five attributes, read from the vectors that the U-Net's norms read.

    The norms multiply features by what they read in the sum of time and pooled text. A pooling that a U-Net learns by
    itself holds what helps at once, which is colour, and hardly any direction. The rest of the objective is frozen.
    """

    def __init__(self, objective: KeyframeNoise, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.noise = objective.requires_grad_(False)
        objective.unet.feature_pooling.requires_grad_(True)
        self.heads = nn.ModuleList(nn.Linear(objective.unet.config.time_embed_dim, count) for count in classes)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor, timesteps: Tensor) -> Tensor:
        """Return the summed cross-entropy of ``labels`` ``[B, attributes]``."""
        keep = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        vectors = self.noise.vectors(ids, mask, keep, timesteps)
        return sum(F.cross_entropy(head(vectors), labels[:, i]) for i, head in enumerate(self.heads))
