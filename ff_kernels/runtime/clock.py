"""The wall time of every stage, and progress handed on."""

import time
from collections.abc import Callable
from typing import Any

# Called after every step with the stage, the steps done and the steps in all; True stops the run.
Progress = Callable[[str, int, int], bool | None]


class Clock:
    """Times stages, ``with clock("text"): ...``, and hands their steps on.

    Args:
        progress: told of every step.
        seconds: takes the wall time of every stage.
    """

    def __init__(self, progress: Progress | None, seconds: dict[str, float]) -> None:
        self.progress, self.seconds, self.stage, self.start = progress, seconds, "", 0.0

    def __call__(self, stage: str) -> "Clock":
        """Name the stage that the block behind ``with`` runs."""
        self.stage = stage
        return self

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds[self.stage] = time.perf_counter() - self.start

    def count(self, done: int, total: int) -> bool:
        """Hand on that so many steps or frames of the stage are done; True stops the run."""
        return bool(self.progress and self.progress(self.stage, done, total))

    def step(self, done: int, total: int, denoised: Any) -> bool:
        """Be the callback of a sampling stage."""
        return self.count(done, total)
