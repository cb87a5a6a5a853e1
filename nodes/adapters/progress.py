"""Steps of the engine's samplers shown by core: progress, previews, the cancel button."""

from typing import Any

from torch import Tensor

from .._compat import check_interrupted, preview_callback, progress_bar


class StepReport:
    """Callback of one sampling stage.

    Args:
        model: MODEL whose latent format makes previews, or None for a plain progress bar.
        steps: steps in all, over every stage this report is handed to.
        clips: clips in a batch, B.
    """

    def __init__(self, model: Any, steps: int, *, clips: int = 1) -> None:
        self.clips, self.steps, self.done = clips, steps, 0
        self._show = preview_callback(model, steps) if model is not None else None
        self._bar = None if model is not None else progress_bar(steps)

    def __call__(self, step: int, total: int, denoised: Tensor) -> None:
        """Report a step whose estimate is ``[B * T, 4, h, w]`` (keyframes) or ``[B * G, 12, h, w]`` (gaps)."""
        self.done += 1
        if self._show is not None:
            # Of a gap its three frames; previews show the first one.
            frames = denoised.unflatten(1, (-1, 4)).flatten(0, 1).unflatten(0, (self.clips, -1))
            self._show(self.done - 1, frames.movedim(2, 1), None, self.steps)
        elif self._bar is not None:
            self._bar.update_absolute(self.done, self.steps)
        check_interrupted()
