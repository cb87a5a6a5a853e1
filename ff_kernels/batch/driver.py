"""The loop that keeps workers busy, one task each, and judges what becomes of them."""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ..errors import OutputError
from .events import Events, Tally, Watch
from .ledger import Ledger
from .processes import Pool
from .rules import Attempts, BatchError, Breaker, Failure, Rules
from .work import BROKEN, CLIP, DONE, LOST, MEMORY, OUTPUT, READY, TEXT, Beat, Report, Task

# Longest wait for a word of the workers, and so the delay of a look at their signs of life.
POLL_SECONDS = 0.5


@dataclass
class _Place:
    """What the driver knows of a worker: its task, when it was given or last showed a sign, and that sign."""

    task: Task | None = None
    is_ready: bool = False
    since: float = 0.0
    sign: float = 0.0


class Driver:
    """Gives tasks to the workers of a pool until none is left.

    Args:
        pool: where workers live.
        ledger: what is done and what failed.
        rules: limits.
        events: takes what happens.
        tally: is kept up to date.
        watch: told after every change.
    """

    def __init__(
        self, pool: Pool, ledger: Ledger, rules: Rules, events: Events, tally: Tally, watch: Watch | None = None
    ) -> None:
        self._pool, self._ledger, self._rules, self._events = pool, ledger, rules, events
        self._tally, self._watch = tally, watch
        self._breaker, self._attempts = Breaker(rules), Attempts(rules)
        self._places: dict[str, _Place] = {}
        self._queue: deque[Task] = deque()

    def run(self, tasks: Sequence[Task], workers: int) -> None:
        """Do all tasks with at most so many workers, which stay for the next call.

        Raises:
            BatchError: if the rules end the run.
            OutputError: if a failure cannot be written down.
        """
        # Whether a failure is everybody's is asked anew: what encodes may well not draw.
        self._breaker = Breaker(self._rules)
        self._queue = deque(tasks)
        try:
            while self._queue or self._busy():
                self._staff(workers)
                self._hand_out()
                for report in self._pool.poll(POLL_SECONDS):
                    self._heed(report)
                self._look_for_silence()
        except BaseException:
            # What was judged before is the rows' own; on a full disk it cannot be said.
            with suppress(OutputError):
                self._write_down(self._breaker.release())
            raise
        self._write_down(self._breaker.release())

    def _busy(self) -> int:
        return sum(place.task is not None for place in self._places.values())

    def _staff(self, workers: int) -> None:
        wanted = min(workers, len(self._queue) + self._busy())
        while len(self._places) < wanted:
            name = self._pool.start()
            self._places[name] = _Place()
            self._events("worker started", worker=name)

    def _hand_out(self) -> None:
        for name, place in self._places.items():
            if not place.is_ready or place.task is not None:
                continue
            task = self._next()
            if task is None:
                return
            place.task, place.since = task, time.monotonic()
            place.sign = Beat.seen(self._ledger.workplace(name))
            if task.kind == CLIP and self._tally.started is None:
                self._tally.started = place.since
            self._events("given", worker=name, task=task.kind, key=task.key)
            self._pool.give(name, replace(task, jobs=task.jobs[:1]))

    def _next(self) -> Task | None:
        while self._queue:
            task = self._queue.popleft()
            if task.kind != CLIP or not self._ledger.is_done(task.key):
                return task
            # Another run on the same folder was faster.
            self._tally.done += 1
            self._events("found", key=task.key)
            self._tell()
        return None

    def _heed(self, report: Report) -> None:
        place = self._places.get(report.worker)
        if place is None:
            return
        if report.kind == READY:
            place.is_ready, self._attempts.starts = True, 0
            self._events("worker ready", worker=report.worker, **report.result)
            self._tell()
            return
        task, place.task = place.task, None
        if report.kind == LOST or task is None:
            self._lose(report, task)
        elif report.kind == DONE:
            self._finish(report, task)
        elif report.kind == OUTPUT:
            self._events("not written", worker=report.worker, key=task.key, message=report.message)
            self._queue.appendleft(task)
            self._attempts.not_written(report)
        elif report.kind == MEMORY:
            self._events("out of memory", worker=report.worker, key=task.key, message=report.message)
            self._dismiss(report.worker)
            failure = self._attempts.out_of_memory(task, report)
            if failure is None:
                self._queue.appendleft(_with_branches_in_turn(task))
            else:
                self._give_up(failure)
        else:
            self._give_up(Failure(task, report.kind, report.message, report.trace, worker=report.worker))

    def _lose(self, report: Report, task: Task | None) -> None:
        """A worker is gone, over a task or without one."""
        was_ready = self._places[report.worker].is_ready
        self._dismiss(report.worker)
        self._events("worker lost", worker=report.worker, key=task.key if task else None, message=report.message)
        if task is not None:
            failure = self._attempts.lost(task, report)
            if failure is None:
                self._queue.appendleft(task)
            else:
                self._give_up(failure)
        elif report.kind == BROKEN:
            raise BatchError(f"a worker cannot open the model: {report.message}")
        elif not was_ready:
            self._attempts.died_early(report)

    def _dismiss(self, worker: str) -> None:
        self._pool.stop(worker)
        self._ledger.release(worker)
        del self._places[worker]

    def _finish(self, report: Report, task: Task) -> None:
        self._attempts.outputs = 0
        if task.kind == CLIP:
            self._tally.done += 1
            self._tally.made += 1
        else:
            self._tally.encoded += 1
        self._events("done", worker=report.worker, task=task.kind, key=task.key, **report.result)
        self._write_down(self._breaker.success())
        self._tell()

    def _give_up(self, failure: Failure) -> None:
        self._events(
            "failed", worker=failure.worker, task=failure.task.kind, key=failure.task.key, kind=failure.kind,
            message=failure.message, attempts=failure.attempts,
        )  # fmt: skip
        self._write_down(self._breaker.failure(failure))
        self._tell()

    def _write_down(self, failures: Sequence[Failure]) -> None:
        for failure in failures:
            for job in failure.task.jobs:
                self._ledger.fail(
                    job.key,
                    {
                        "prompt": job.prompt,
                        "rows": list(job.labels),
                        "while": "encoding its prompt" if failure.task.kind == TEXT else "making its clip",
                        "kind": failure.kind,
                        "error": failure.message,
                        "attempts": failure.attempts,
                        "worker": failure.worker,
                        **({"trace": failure.trace} if failure.trace else {}),
                    },
                )
                self._tally.failed += 1

    def _look_for_silence(self) -> None:
        now = time.monotonic()
        for name, place in list(self._places.items()):
            if place.task is None:
                continue
            sign = Beat.seen(self._ledger.workplace(name))
            if sign != place.sign:
                # Compared with itself only, as the folder's clock may be another machine's.
                place.sign, place.since = sign, now
            elif now - place.since > self._rules.patience:
                task, place.task = place.task, None
                self._lose(Report(name, LOST, f"it gave no sign for {self._rules.patience:g} seconds"), task)

    def _tell(self) -> None:
        self._tally.workers = sum(place.is_ready for place in self._places.values())
        if self._watch is not None:
            self._watch(self._tally)


def _with_branches_in_turn(task: Task) -> Task:
    jobs = tuple(replace(job, settings=replace(job.settings, is_stacked=False)) for job in task.jobs)
    return replace(task, jobs=jobs)
