"""What failures mean: whose fault one is, when a row is given up, when the whole run is."""

import re
from dataclasses import dataclass, field

from ..errors import FusionFramesError
from .work import LOST, Report, Task


class BatchError(FusionFramesError):
    """The run ended before all rows were tried; the same command goes on where it stopped."""


@dataclass(frozen=True)
class Rules:
    """Limits of a run.

    Attributes:
        patience: seconds without a sign of life after which a worker counts as dead.
        losses: workers that a job may cost before its row is given up.
        first_alike: so many failures alike stop the run where nothing has been done before.
        alike: so many in a row stop it at any time.
        outputs: so many results in a row that could not be written stop it.
        starts: so many workers in a row that die before they are ready stop it.
    """

    patience: float = 600.0
    losses: int = 2
    first_alike: int = 3
    alike: int = 10
    outputs: int = 3
    starts: int = 3


@dataclass(frozen=True)
class Failure:
    """A task that is given up.

    Attributes:
        task: what was given up.
        kind: see ``Report``.
        message: one sentence.
        trace: where it broke.
        attempts: how often it was tried.
        worker: the last that tried.
    """

    task: Task
    kind: str
    message: str
    trace: str = ""
    attempts: int = 1
    worker: str = ""

    @property
    def signature(self) -> tuple[str, str]:
        """Equal for failures of one cause: what differs from row to row, quoted names and digits, is out."""
        return self.kind, re.sub(r"'[^']*'|\w*\d\w*", "", "" if self.kind == LOST else self.message)


@dataclass
class Breaker:
    """Holds failures back until it is clear that they are the rows' own and not one fault of all.

    Attributes:
        rules: limits.
        held: failures alike, the newest at the end.
        saw_other: whether anything but these failures happened before.
    """

    rules: Rules
    held: list[Failure] = field(default_factory=list)
    saw_other: bool = False

    def success(self) -> list[Failure]:
        """A task was done: return the failures that may be written down."""
        self.saw_other = True
        return self.release()

    def failure(self, failure: Failure) -> list[Failure]:
        """A task was given up: return the earlier failures that may be written down.

        Raises:
            BatchError: if too many were alike; none of them is to be written down.
        """
        released = []
        if self.held and self.held[-1].signature != failure.signature:
            released, self.saw_other = self.release(), True
        self.held.append(failure)
        limit = self.rules.alike if self.saw_other else self.rules.first_alike
        if len(self.held) >= limit:
            count, self.held = len(self.held), []
            raise BatchError(
                f"stopped, as {count} rows in a row failed alike ({failure.message}): mend the cause and run the "
                "same command again; none of them is marked as failed"
            )
        return released

    def release(self) -> list[Failure]:
        """Return all failures that are held, for writing."""
        released, self.held = self.held, []
        return released


@dataclass
class Attempts:
    """How often each task has cost a worker or a device's memory.

    Attributes:
        rules: limits.
        losses: workers lost, by the key of the task.
        memory: keys of tasks that ran out of memory once.
        outputs: results in a row that could not be written.
        starts: workers in a row that died before they were ready.
    """

    rules: Rules
    losses: dict[str, int] = field(default_factory=dict)
    memory: set[str] = field(default_factory=set)
    outputs: int = 0
    starts: int = 0

    def lost(self, task: Task, report: Report) -> Failure | None:
        """A worker died over a task: return the failure if the task is to be given up."""
        self.losses[task.key] = count = self.losses.get(task.key, 0) + 1
        if count < self.rules.losses:
            return None
        times = {1: "once", 2: "twice"}.get(count, f"{count} times")
        message = f"the worker died {times} over this row; at last {report.message}"
        return Failure(task, LOST, message, attempts=count, worker=report.worker)

    def out_of_memory(self, task: Task, report: Report) -> Failure | None:
        """A task ran out of memory: return the failure if it did so before."""
        if task.key in self.memory:
            return Failure(task, report.kind, report.message, report.trace, 2, report.worker)
        self.memory.add(task.key)
        return None

    def not_written(self, report: Report) -> None:
        """A result could not be written.

        Raises:
            BatchError: if that happened too often in a row.
        """
        self.outputs += 1
        if self.outputs >= self.rules.outputs:
            raise BatchError(f"{report.message}; then run the same command again: it goes on where it stopped")

    def died_early(self, report: Report) -> None:
        """A worker died before it was ready.

        Raises:
            BatchError: if that happened too often in a row.
        """
        self.starts += 1
        if self.starts >= self.rules.starts:
            raise BatchError(f"stopped, as {self.starts} workers in a row died while they started: {report.message}")
