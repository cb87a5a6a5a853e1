"""Engines of batch workers for tests: one that does as the prompt says, and the real one with a fatal prompt."""

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fusionframes.ff_kernels.batch.ledger import Ledger
from fusionframes.ff_kernels.batch.work import TEXT, EngineFactory, Task
from fusionframes.ff_kernels.errors import InputError

POISON = "poison"


class ObedientEngine:
    """Writes a clip of a few bytes, or fails in the way that the first word of the prompt names."""

    def __init__(self, output: Path, name: str, workplace: Path) -> None:
        self.ledger, self.name = Ledger(output), name

    def do(self, task: Task, beat: Callable[..., None]) -> Mapping[str, Any]:
        if task.kind == TEXT:
            return {}
        (job,) = task.jobs
        word = job.prompt.split()[0]
        with (self.ledger.folder / "tries.txt").open("a") as file:
            file.write(f"{job.key} {word} {job.settings.is_stacked}\n")
        if word == "crash":
            os._exit(3)
        if word == "hang":
            time.sleep(3600)
        if word == "wrong":
            raise InputError(f"expected nothing wrong, got '{job.prompt}': write another")
        if word == "bug":
            raise ZeroDivisionError(f"in row {job.key}")
        if word == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if word == "memory" and (job.settings.is_stacked is not False or job.prompt.endswith("always")):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        if word == "slow":
            for _ in range(6):
                time.sleep(0.5)
                beat()
        video = self.ledger.video(job.key)
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(job.prompt.encode())
        self.ledger.commit(job.key, {"prompt": job.prompt, "rows": list(job.labels), "bytes": len(job.prompt),
                                     "negative": None, "image": None, "frames": 1, "fps": 2.0, "sha256": "",
                                     "settings": {"seed": job.settings.seed}, "seconds": {}})  # fmt: skip
        return {}


def obedient(output: Path) -> EngineFactory:
    return partial(ObedientEngine, output)


def no_engine(name: str, workplace: Path) -> None:
    raise RuntimeError("no engine here")


class PoisonedEngine:
    """The engine of the product, whose process one prompt ends."""

    def __init__(self, factory: EngineFactory, name: str, workplace: Path) -> None:
        self.engine = factory(name, workplace)

    def do(self, task: Task, beat: Callable[..., None]) -> Mapping[str, Any]:
        if POISON in task.jobs[0].prompt and task.kind != TEXT:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.engine.do(task, beat)
