"""What passes between a driver and its workers: tasks, reports, signs of life."""

import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import FusionFramesError
from .jobs import Job

TEXT, CLIP = "text", "clip"
# Reports of a worker, and what a pool says in its place.
READY, DONE, REFUSED, OUTPUT, MEMORY, BROKEN, LOST = "ready", "done", "refused", "output", "memory", "broken", "lost"
# A sign of life costs the shared folder one request.
BEAT_SECONDS = 1.0
_TRACE_LINES = 40


@dataclass(frozen=True)
class Task:
    """One piece of work.

    Attributes:
        kind: ``TEXT``: encode a prompt; ``CLIP``: make a clip of its file.
        key: ``Job.text_key`` or ``Job.key``.
        jobs: what hangs on it; the first is what is worked on.
    """

    kind: str
    key: str
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Report:
    """What became of a worker or its task.

    Attributes:
        worker: name.
        kind: ``READY``, ``DONE``, ``REFUSED`` (the row or the model is wrong), ``OUTPUT`` (could not write or
            read), ``MEMORY`` (device out of memory), ``BROKEN`` (any other exception), ``LOST`` (the process is gone).
        message: one sentence.
        trace: where it broke.
        result: what the engine returned.
    """

    worker: str
    kind: str
    message: str = ""
    trace: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """What a worker holds."""

    def do(self, task: Task, beat: Callable[..., None]) -> Mapping[str, Any]:
        """Do a task, calling ``beat`` after every step; return what the event about it says."""


# Made inside of the worker's process from the name and the workplace of the worker.
EngineFactory = Callable[[str, Path], Engine]


class Beat:
    """Signs of life: the time of a file in the worker's workplace. Called with anything, as a progress callback is."""

    def __init__(self, workplace: Path) -> None:
        self._path, self._last = workplace / "beat", 0.0

    def __call__(self, *_: object) -> None:
        """Say that work goes on; at most once a second it reaches the folder."""
        now = time.monotonic()
        if now - self._last >= BEAT_SECONDS:
            self._last = now
            # A driver that sees no sign ends the worker, so a full or lagging disk must not do it here.
            with suppress(OSError):
                self._path.touch()

    @staticmethod
    def seen(workplace: Path) -> float:
        """Return the time of the last sign on the clock of the folder; 0 if there was none."""
        with suppress(OSError):
            return (workplace / "beat").stat().st_mtime
        return 0.0


class Worker:
    """An engine with a name; no exception of a task leaves it."""

    def __init__(self, name: str, workplace: str, factory: EngineFactory) -> None:
        self.name, self._workplace = name, Path(workplace)
        self._workplace.mkdir(parents=True, exist_ok=True)
        self._beat = Beat(self._workplace)
        self._engine = factory(name, self._workplace)

    def ready(self) -> Report:
        """Say that the engine is there, and where."""
        return Report(self.name, READY, result={"host": socket.gethostname(), "process": os.getpid()})

    def do(self, task: Task) -> Report:
        """Do a task and say what became of it."""
        self._beat()
        try:
            return Report(self.name, DONE, result=self._engine.do(task, self._beat))
        except OSError as error:
            # The machine's trouble and not the row's, wherever it shows.
            return Report(self.name, OUTPUT, str(error))
        except FusionFramesError as error:
            return Report(self.name, REFUSED, str(error))
        except Exception as error:
            trace = "".join(traceback.format_exception(error)[-_TRACE_LINES:])
            is_memory = isinstance(error, MemoryError) or (
                isinstance(error, RuntimeError) and ("out of memory" in str(error) or "allocate" in str(error))
            )
            return Report(self.name, MEMORY if is_memory else BROKEN, f"{type(error).__name__}: {error}", trace)
