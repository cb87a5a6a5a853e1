"""Jobs that are done once: each leaves its numbers in a small file, and beside it what resumes it after any kill."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from ..checkpoints.detection import detect
from ..checkpoints.folder import ModelFiles, find_models
from ..checkpoints.loading import load
from ..checkpoints.reading import read_contents
from ..demo import WEIGHTS
from ..demo.batches import TRAINING_SCENES, draw_clip
from ..demo.model import DEFAULTS
from ..demo.world.scenes import KEYFRAMES, frame_times
from ..files import atomic_path
from ..pipeline.pipeline import Pipeline
from ..runtime.devices import DTYPES, name_of
from ..training.loop import Draw, fingerprint
from ..training.run_folder import TrainRun
from . import RESULTS
from .budgets import Budget
from .watching import Watch

Numbers = dict[str, float]
CPU = torch.device("cpu")
JOBS = "jobs"


class OutOfTimeError(Exception):
    """Raised where a job is left for later; what resumes it is saved."""


@dataclass(frozen=True)
class Training:
    """How a job trains.

    Attributes:
        start: makes the objective with its start values, of torch's generator.
        draw: makes the source of batches, and what latents it needs.
        budget: for how long.
        settings: what else the trained weights depend on.
        watch: numbers of a point of the training curve; None for no curve.
    """

    start: Callable[[], nn.Module]
    draw: Callable[[TrainRun], Draw]
    budget: Budget
    settings: Mapping[str, object] = field(default_factory=dict)
    watch: Callable[[nn.Module], Numbers] | None = None


def file_stem(words: str) -> str:
    """Return words as the name of a file."""
    return words.replace(", ", "-").replace(" ", "-")


@dataclass(frozen=True)
class Job:
    """One row of a table under one seed.

    Attributes:
        group: the table.
        name: the row.
        seed: of start values, data and noise; 0 where nothing is random.
        measure: returns the numbers, of the trained objective or of None where nothing trains.
        settings: what the numbers depend on beside the training.
        training: None where nothing trains.
    """

    group: str
    name: str
    seed: int
    measure: Callable[[nn.Module | None], Numbers]
    settings: Mapping[str, object]
    training: Training | None = None

    @property
    def stem(self) -> str:
        """The job as the name of a file."""
        return file_stem(f"{self.group}-{self.name}-seed{self.seed}")

    @cached_property
    def key(self) -> dict[str, Any]:
        """All that the numbers depend on; numbers kept under another key are not taken up."""
        key = {**self.settings, "seed": self.seed, "guidance_scale": DEFAULTS.guidance_scale}
        key |= {"weights": shipped_weights(), "world": world()}
        if self.training is not None:
            key |= {"budget": self.training.budget.to_dict(), "training": dict(self.training.settings)}
            values = self.begin().state_dict().values()
            # Bits of start values differ between processors; their number and sum of squares hardly do.
            squares = sum(value.double().square().sum().item() for value in values)
            key["start"] = {"values": sum(value.numel() for value in values), "squares": squares}
        return json.loads(json.dumps(key))

    def begin(self) -> nn.Module:
        """Return the objective as it starts."""
        torch.manual_seed(self.seed)
        return self.training.start()


@dataclass(frozen=True)
class ExperimentRun:
    """Where and how much to train.

    Attributes:
        folder: numbers, weights and training states, outside of the repository.
        share: factor on every budget.
        seeds: how many of each trained row; None for those of ``budgets``.
        lpips: network file for LPIPS, None to leave that column empty.
        stops: asked after every step and before every job whether to leave the rest for later.
    """

    folder: Path
    share: float = 1.0
    seeds: int | None = None
    lpips: Path | None = None
    stops: Callable[[], bool] = lambda: False

    def seeds_of(self, usual: int) -> range:
        """Return the seeds of a table that usually has so many."""
        return range(1, (self.seeds or usual) + 1)

    def train(self, job: Job) -> tuple[nn.Module, Watch]:
        """Train the objective of a job, or take up where it was left.

        Raises:
            OutOfTimeError: if it was left again.
        """
        training = job.training
        run = TrainRun(self.folder / job.group, CPU, DTYPES[training.budget.dtype], seed=job.seed)
        exact = {name: value for name, value in job.key.items() if name != "start"}
        digest = hashlib.sha256(json.dumps(exact, sort_keys=True).encode()).hexdigest()[:8]
        stage = f"{job.stem}-{digest}"
        objective = job.begin()
        watch = Watch(run.folder / "state" / f"{stage}.json", training.budget, training.watch, self.stops)
        with torch.enable_grad():
            run.train(stage, objective, training.draw(run), training.budget.train, watch)
        if watch.stopped:
            raise OutOfTimeError(job.stem)
        return objective.eval(), watch

    def weights_file(self, name: str) -> Path:
        """Return where a network lies in the format of ``convert``."""
        path = self.folder / "weights" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def record_file(self, job: Job) -> Path:
        """Return where the numbers of a job are kept."""
        return self.folder / JOBS / f"{job.stem}.json"


def finish(run: ExperimentRun, job: Job) -> dict[str, Any]:
    """Return the record of a job, working only if neither the folder nor the package has it.

    Raises:
        OutOfTimeError: if it was left for later.
    """
    record = find_record(run, job)
    if record is not None:
        return record
    if run.stops():
        raise OutOfTimeError(job.stem)
    record = {"key": job.key}
    if job.training is None:
        record["numbers"] = job.measure(None)
    else:
        objective, watch = run.train(job)
        record |= {"numbers": job.measure(objective), **watch.record(), "timed_on": name_of(CPU)}
    path = run.record_file(job)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="ascii")
    return record


def find_record(run: ExperimentRun, job: Job) -> dict[str, Any] | None:
    """Return the record of a job that the folder or the package keeps under the job's key."""
    for path in (run.record_file(job), RESULTS / JOBS / f"{job.stem}.json"):
        if path.exists():
            record = json.loads(path.read_text(encoding="ascii"))
            if agree(record["key"], job.key):
                return record
    return None


def agree(kept: Any, wanted: Any) -> bool:
    """Whether two JSON values are the same but for the rounding of numbers."""
    if isinstance(wanted, dict) and isinstance(kept, dict):
        return kept.keys() == wanted.keys() and all(agree(kept[name], wanted[name]) for name in wanted)
    if isinstance(wanted, float) and isinstance(kept, float):
        return math.isclose(kept, wanted, rel_tol=1e-5)
    return kept == wanted


@cache
def shipped_weights() -> str:
    """Return what names the shipped weights all together."""
    return fingerprint(
        {f"{path.stem}.{k}": v for path in WEIGHTS.rglob("*.safetensors") for k, v in load_file(path).items()}
    )


@cache
def world() -> str:
    """Return what names the world that clips are drawn from: the captions that train, and clips of a few."""
    digest = hashlib.sha256("\n".join(scene.caption() for scene in TRAINING_SCENES).encode())
    for scene in TRAINING_SCENES[:: len(TRAINING_SCENES) // 8]:
        clip = draw_clip(np.random.default_rng(0), scene, frame_times(KEYFRAMES))
        # Coarse enough for another processor's sines.
        digest.update(((clip + 1) * 8).round().to(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def shipped(name: str) -> nn.Module:
    """Return a shipped network in float32, free to be trained."""
    return load(WEIGHTS / f"{name}.safetensors", dtype=torch.float32).network.requires_grad_(True)


def pipeline_with(path: Path) -> Pipeline:
    """Return the shipped demo model with one network replaced by that of a file."""
    contents = read_contents(path)
    kind = detect(contents)
    shipped_models = find_models(WEIGHTS)
    files = dict(shipped_models.files)
    if kind.stage in ("interpolation", "masked"):
        files.pop("interpolation", None)
    files[kind.stage] = (contents, kind)
    models: ModelFiles = replace(shipped_models, files=files)
    return Pipeline(models, defaults=DEFAULTS)


def mean_of(numbers: Iterable[Numbers]) -> Numbers:
    """Average dictionaries with the same keys."""
    rows = list(numbers)
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def core_seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns and the processor time it took, whatever else ran beside it."""
    start = time.process_time()
    return work(), time.process_time() - start


def seeded(seed: int) -> int:
    """Return the seed of the samples of a job: clip i of a batch has that of seed + i."""
    return 1000 * seed
