"""Workers of this machine: one process each, so that a crash ends a worker and nothing else."""

import multiprocessing
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from .ledger import Ledger, worker_name
from .work import BROKEN, LOST, EngineFactory, Report, Task, Worker

_END_SECONDS = 5.0


class Pool(Protocol):
    """Where workers live; the driver's only way to them."""

    def start(self) -> str:
        """Start a worker and return its name; it reports when it is ready."""

    def give(self, worker: str, task: Task) -> None:
        """Hand a task to a ready worker."""

    def poll(self, seconds: float) -> list[Report]:
        """Return what workers said, after at most so many seconds."""

    def stop(self, worker: str) -> None:
        """End a worker at once, whatever it does, and forget it."""

    def close(self) -> None:
        """End all workers."""


@dataclass
class _Child:
    process: Any
    connection: Connection


class ProcessPool:
    """A pool of processes on this machine.

    Args:
        factories: makes the engine inside of the child, one per slot; a slot is one GPU, or a share of the processor.
        ledger: knows the workplaces.
    """

    def __init__(self, factories: Sequence[EngineFactory], ledger: Ledger) -> None:
        self._factories, self._ledger = factories, ledger
        self._context = multiprocessing.get_context("spawn")
        self._children: dict[str, _Child] = {}
        self._slots: dict[str, int] = {}
        self._started = 0

    def start(self) -> str:
        """See ``Pool``."""
        slot = next(i for i in range(len(self._factories)) if i not in self._slots.values())
        name = worker_name(f"worker{slot}", self._started)
        self._started += 1
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, name, str(self._ledger.workplace(name)), self._factories[slot]),
            name=name, daemon=True,
        )  # fmt: skip
        process.start()
        # The child's end stays open only in the child, so that its end shows here.
        theirs.close()
        self._children[name], self._slots[name] = _Child(process, ours), slot
        return name

    def give(self, worker: str, task: Task) -> None:
        """See ``Pool``."""
        try:
            self._children[worker].connection.send(task)
        except OSError:
            # It died while idle; the poll says so.
            return

    def poll(self, seconds: float) -> list[Report]:
        """See ``Pool``."""
        names = {child.connection: name for name, child in self._children.items()}
        reports = []
        for connection in wait(list(names), timeout=seconds):
            name = names[connection]
            try:
                report = connection.recv()
            except (EOFError, OSError):
                report = Report(name, LOST, self._end(name))
            reports.append(report)
        return reports

    def stop(self, worker: str) -> None:
        """See ``Pool``."""
        if worker in self._children:
            self._children[worker].process.kill()
            self._end(worker)

    def close(self) -> None:
        """See ``Pool``."""
        for worker in list(self._children):
            self.stop(worker)

    def _end(self, worker: str) -> str:
        """Forget a worker whose process is gone or going; return how it went."""
        child = self._children.pop(worker)
        del self._slots[worker]
        child.connection.close()
        child.process.join(_END_SECONDS)
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
        self._ledger.release(worker)
        code = child.process.exitcode
        return f"its process ended by signal {-code}" if code < 0 else f"its process ended with status {code}"


def _serve(connection: Connection, name: str, workplace: str, factory: EngineFactory) -> None:
    # An interrupt from the keyboard reaches the whole group; the driver decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        worker = Worker(name, workplace, factory)
    except Exception as error:
        connection.send(Report(name, BROKEN, f"{error}"))
        return
    # Ends when the driver has gone; what was running then has been finished.
    with suppress(EOFError, OSError):
        connection.send(worker.ready())
        while True:
            connection.send(worker.do(connection.recv()))
    shutil.rmtree(workplace, ignore_errors=True)
