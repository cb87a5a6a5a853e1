"""What is noted while a job trains: points of its curve and the processor time of a step."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..files import atomic_path
from ..training.loop import Training
from .budgets import Budget


class Watch:
    """Called after every step of a training; resumed from its file, which is written with every point.

    Processor time is what the steps themselves took: it stays the same beside other work, where a clock does not.

    Args:
        path: of the file.
        budget: says at which steps the curve has points.
        measure: returns the numbers of a point; None for a curve without points.
        stops: whether to leave the rest for later.

    Attributes:
        stopped: whether steps are left for later.
    """

    def __init__(
        self, path: Path, budget: Budget, measure: Callable[[nn.Module], dict[str, float]] | None,
        stops: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.path, self.measure, self.stops = path, measure, stops
        self.steps = budget.train.steps
        self.every = max(1, self.steps // budget.watched) if budget.watched and measure else 0
        self.stopped, self._before = False, None
        kept = json.loads(path.read_text(encoding="ascii")) if path.exists() else {}
        self.timed, self.core_seconds = kept.get("timed", 0), kept.get("core_seconds", 0.0)
        self.curve: dict[str, dict[str, float]] = kept.get("curve", {})

    def __call__(self, training: Training) -> bool:
        """Note a step and return whether to stop."""
        now = time.process_time()
        if self._before is not None:
            # The first step of a sitting pays for what is set up once.
            self.timed, self.core_seconds = self.timed + 1, self.core_seconds + now - self._before
        is_last = training.step == self.steps
        if self.every and (training.step % self.every == 0 or is_last):
            with training.averaged():
                self.curve[str(training.step)] = self.measure(training.objective)
        self.stopped = not is_last and self.stops()
        if is_last or self.stopped or str(training.step) in self.curve:
            self._save()
        self._before = time.process_time()
        return self.stopped

    def record(self) -> dict[str, Any]:
        """Return what is kept of the training."""
        each = self.core_seconds / self.timed if self.timed else 0.0
        return {"core_seconds_per_step": each, "curve": self.curve}

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"timed": self.timed, "core_seconds": self.core_seconds, "curve": self.curve}
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(kept), encoding="ascii")
