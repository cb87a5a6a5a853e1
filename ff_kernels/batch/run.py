"""``run_batch``: a file of prompts to a folder of clips, as ``fusionframes batch`` does it."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import InputError, OutputError
from ..runtime.devices import choose_device, choose_dtype, count_devices
from .driver import Driver
from .engine import ModelOptions, engine_factory, open_pipeline
from .events import Events, Tally, Watch
from .jobs import Job, Plan, RowDefaults
from .ledger import CHECKING, Ledger
from .manifest import write_manifest
from .planning import make_plan
from .processes import Pool, ProcessPool
from .ray_pool import RayPool, connect, count_gpus
from .rows import read_rows
from .rules import BatchError, Rules
from .work import CLIP, TEXT, EngineFactory, Task

# To read the released encoder from a shared disk takes about as long as to encode so many prompts on a card.
PROMPTS_PER_ENCODER = 2000


@dataclass(frozen=True)
class WorkerOptions:
    """Who works.

    Attributes:
        count: workers; None is one per GPU, or one where there is none.
        ray: None for processes of this machine, or "local", "auto" or the address of a Ray cluster.
        shard: (i, n): only the rows that fall to run i of n, 0 <= i < n; None for all rows.
        patience: seconds without a sampling step after which a worker is ended.
        engine: makes the engine of a worker; None makes clips with the model.
    """

    count: int | None = None
    ray: str | None = None
    shard: tuple[int, int] | None = None
    patience: float = 600.0
    engine: EngineFactory | None = None


@dataclass(frozen=True)
class BatchResult:
    """How a run ended.

    Attributes:
        total: clips that the rows of this run ask for, wrong rows included.
        done: finished, those of earlier runs too.
        failed: given up, with a reason in ``failed/``.
        made: clips of this run.
        seconds: from the start of the run to its end.
        stopped: why it ended before all rows were tried, or None.
    """

    total: int
    done: int
    failed: int
    made: int
    seconds: float
    stopped: str | None = None

    @property
    def status(self) -> int:
        """Exit status: 0 all done, 1 rows failed, 2 stopped or nothing that could run."""
        if self.stopped is not None or (self.failed and not self.done):
            return 2
        return 1 if self.failed else 0


def plan_batch(prompts: str | Path, model: ModelOptions, defaults: RowDefaults) -> Plan:
    """Read and check every row of a file of prompts; no network is loaded.

    Raises:
        InputError: if the file or the model cannot be used at all.
        CheckpointError: if a weights file is damaged.
    """
    # The dtype belongs to the key of a clip, the device does not.
    dtype = model.dtype or _name(choose_dtype(choose_device(model.device)))
    return make_plan(read_rows(prompts), open_pipeline(replace(model, dtype=dtype), device="cpu"), defaults)


def run_batch(
    prompts: str | Path,
    output: str | Path,
    *,
    model: ModelOptions | None = None,
    defaults: RowDefaults | None = None,
    workers: WorkerOptions | None = None,
    retry_failed: bool = False,
    watch: Watch | None = None,
) -> BatchResult:
    """Make the clips of a file of prompts that are not there yet.

    May be called again at any time, from several places at once: what is done stays done, and the same row gives the
    same file. Starts processes, so a script calls it under ``if __name__ == "__main__"``.

    Args:
        prompts: see ``read_rows``.
        output: folder of the batch, see ``Ledger``.
        model: what to run.
        defaults: what rows start from.
        workers: who runs it.
        retry_failed: try rows again that failed in an earlier run.
        watch: told the count after every change.

    Raises:
        InputError: if the prompts, the model, the folder or the workers cannot be used at all.
        CheckpointError: if a weights file is damaged.
    """
    started = time.monotonic()
    model, workers = model or ModelOptions(), workers or WorkerOptions()
    ledger = Ledger(output)
    ray = None if workers.ray is None else connect(workers.ray, (workers.count or 1) * _threads(model, workers))
    model, count = _settled(model, workers, ray)
    plan = plan_batch(prompts, model, defaults or RowDefaults())
    # A row that was wrong and is now mended has another key.
    ledger.forget_failures(ledger.refused() - plan.keys)
    if workers.shard is not None:
        plan = plan.shard(*workers.shard)
    events = Events(ledger.events, secrets.token_hex(4))
    if retry_failed:
        ledger.forget_failures(plan.keys)
    others = ledger.sweep()
    todo, tally = _take_stock(plan, ledger, hurried=others > 0)
    events("run started", rows=tally.total, done=tally.done, failed=tally.failed, workers=count, ray=workers.ray)
    stopped = None
    try:
        if todo:
            pool = _pool(model, workers, ledger, count, ray)
            try:
                driver = Driver(pool, ledger, Rules(patience=workers.patience), events, tally, watch)
                _drive(driver, todo, ledger, count, tally)
            finally:
                pool.close()
        if not tally.missing:
            write_manifest(ledger)
    except (BatchError, OutputError) as error:
        stopped = str(error)
    except KeyboardInterrupt:
        events("interrupted")
        raise
    finally:
        ledger.sweep()
    events("run ended", done=tally.done, failed=tally.failed, missing=tally.missing, stopped=stopped)
    return BatchResult(tally.total, tally.done, tally.failed, tally.made, time.monotonic() - started, stopped)


def _take_stock(plan: Plan, ledger: Ledger, *, hurried: bool) -> tuple[list[Job], Tally]:
    """Write refused rows down and return the jobs that are left, with the count of all."""
    tally = Tally(total=len(plan.keys))
    for refusal in plan.refusals:
        row = refusal.row
        ledger.fail(
            refusal.key,
            {"prompt": row.prompt, "rows": [row.label], "while": CHECKING, "kind": "refused",
             "error": refusal.problem, "row": row.number, "attempts": 1},
        )  # fmt: skip
    tally.failed = len({refusal.key for refusal in plan.refusals})
    todo = []
    for job in plan.jobs:
        if ledger.is_done(job.key):
            tally.done += 1
        elif ledger.failure(job.key) is not None:
            tally.failed += 1
        else:
            todo.append(job)
    if hurried:
        # Another run is at work here: from the same end both would make the same clips.
        todo = [todo[i] for i in torch.randperm(len(todo), generator=_own_generator()).tolist()]
    return todo, tally


def _own_generator() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


def _drive(driver: Driver, todo: Sequence[Job], ledger: Ledger, count: int, tally: Tally) -> None:
    texts: dict[str, list[Job]] = {}
    for job in todo:
        if not ledger.context(job.text_key).exists():
            texts.setdefault(job.text_key, []).append(job)
    tally.to_encode = len(texts)
    # By few workers: what encodes is large and soon done, and must have left before the U-Nets come.
    driver.run([Task(TEXT, key, tuple(jobs)) for key, jobs in texts.items()], encoders(len(texts), count))
    ready = [job for job in todo if ledger.failure(job.key) is None]
    driver.run([Task(CLIP, job.key, (job,)) for job in ready], count)


def encoders(prompts: int, workers: int) -> int:
    """Return how many of the workers encode prompts."""
    return min(workers, max(1, prompts // PROMPTS_PER_ENCODER))


def _settled(model: ModelOptions, workers: WorkerOptions, ray: object | None) -> tuple[ModelOptions, int]:
    """Return the model's options with device, dtype and threads decided for all workers, and their number."""
    if ray is None:
        device = str(choose_device(model.device))
        dtype = _name(choose_dtype(choose_device(device), model.dtype))
        count = workers.count or (1 if ":" in device else count_devices(device))
    else:
        gpus = count_gpus(ray)
        device = model.device or ("cuda" if gpus else "cpu")
        if device == "cuda" and not gpus:
            raise InputError("expected GPUs in the Ray cluster for the device 'cuda', found none: take cpu")
        # Each machine may say otherwise of itself, but the keys of the clips must not.
        dtype = model.dtype or ("float16" if device == "cuda" else "float32")
        count = workers.count or max(1, gpus if device == "cuda" else 1)
    if count < 1:
        raise InputError(f"expected at least one worker, got {count}: ask for more")
    # A worker of a cluster has another working folder.
    folder = None if model.model is None else model.model.absolute()
    return replace(model, model=folder, device=device, dtype=dtype, threads=_threads(model, workers)), count


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _threads(model: ModelOptions, workers: WorkerOptions) -> int:
    return model.threads or max(1, torch.get_num_threads() // (workers.count or 1))


def _pool(model: ModelOptions, workers: WorkerOptions, ledger: Ledger, count: int, ray: object | None) -> Pool:
    folder = ledger.folder.absolute()
    if ray is not None:
        factory = workers.engine or engine_factory(model, folder)
        return RayPool(ray, factory, ledger, model.threads, gpus=1 if model.device == "cuda" else 0)
    # A device without a number stands for all of its type.
    is_one = model.device == "cpu" or ":" in model.device
    devices = [model.device] if is_one else [f"{model.device}:{i}" for i in range(count_devices(model.device))]
    factories = [
        workers.engine or engine_factory(replace(model, device=devices[i % len(devices)]), folder) for i in range(count)
    ]
    return ProcessPool(factories, ledger)
