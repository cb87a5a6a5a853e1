"""Steps of the engine's samplers shown by core: progress, previews, the cancel button."""

from typing import Any

from torch import Tensor

from .._compat import check_interrupted, preview_callback
from .latent import CHANNELS


class StepReport:
    """Callback of one sampling stage.

    Args:
        model: MODEL whose latent format makes previews.
        steps: steps in all, over every stage this report is handed to.
        clips: clips in a batch, B.
    """

    def __init__(self, model: Any, steps: int, *, clips: int = 1) -> None:
        self.clips, self.steps, self.done = clips, steps, 0
        self._show = preview_callback(model, steps)

    def __call__(self, step: int, total: int, denoised: Tensor) -> None:
        """Report a step whose estimate is ``[B * T, 4, h, w]`` (keyframes) or ``[B * G, 12, h, w]`` (gaps)."""
        self.done += 1
        # Of a gap its three frames; previews show the first one.
        frames = denoised.unflatten(1, (-1, CHANNELS)).flatten(0, 1).unflatten(0, (self.clips, -1))
        self._show(self.done - 1, frames.movedim(2, 1), None, self.steps)
        check_interrupted()
