"""What happens in a run: a line of JSON per event, and the count of it in one line."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Events:
    """Appends to ``events.jsonl``; several runs may append to the same file.

    Args:
        path: the file.
        run: name of this run, on every line.
    """

    def __init__(self, path: Path, run: str) -> None:
        self._path, self._run, self._is_broken = path, run, False

    def __call__(self, event: str, **values: Any) -> None:
        """Append one event."""
        if self._is_broken:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "run": self._run,
            "event": event,
            **values,
        }
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                # One write in append mode: lines of several runs do not mix.
                os.write(handle, (json.dumps(line) + "\n").encode())
            finally:
                os.close(handle)
        except OSError:
            # Nothing reads it to go on. A disk that refuses this refuses the next clip too, which says so.
            self._is_broken = True


@dataclass
class Tally:
    """Rows of a run, counted.

    Attributes:
        total: rows of this run that are clips of their own.
        done: finished, those of earlier runs too.
        failed: given up, those of earlier runs too.
        encoded: prompts encoded by this run.
        to_encode: prompts to encode in this run.
        workers: ready or busy.
        made: clips of this run.
        started: when the first clip of this run was begun, by ``time.monotonic``; None before.
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    encoded: int = 0
    to_encode: int = 0
    workers: int = 0
    made: int = 0
    started: float | None = None

    @property
    def missing(self) -> int:
        """Rows that are neither done nor given up."""
        return self.total - self.done - self.failed

    @property
    def clips_per_hour(self) -> float | None:
        """Clips of this run per hour; None before the first."""
        if self.started is None or not self.made:
            return None
        return self.made / max(time.monotonic() - self.started, 1e-6) * 3600

    def line(self) -> str:
        """Return done, failed, clips per hour and time left."""
        if self.started is None and self.encoded < self.to_encode:
            return f"encoding prompts: {self.encoded} of {self.to_encode}"
        line = f"{self.done} of {self.total} done, {self.failed} failed, {self.workers} workers"
        rate = self.clips_per_hour
        if rate is None:
            return line
        return f"{line}, {rate:.0f} clips/h, {duration(self.missing / rate * 3600)} left"


# Told after every change.
Watch = Callable[[Tally], None]


def duration(seconds: float) -> str:
    """Return a time in words of one or two units."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
