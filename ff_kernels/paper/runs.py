"""Runs of a comparison that are done once: each leaves its numbers in a small file and its weights beside it."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ..checkpoints.detection import detect
from ..checkpoints.folder import ModelFiles, find_models
from ..checkpoints.loading import load
from ..checkpoints.reading import read_contents
from ..demo import WEIGHTS
from ..demo.model import DEFAULTS
from ..files import atomic_path
from ..pipeline.pipeline import Pipeline
from ..training.loop import fingerprint
from ..training.run_folder import TrainRun
from .budgets import Budget

Numbers = dict[str, float]


@dataclass(frozen=True)
class Job:
    """One row of a table under one seed.

    Attributes:
        name: the row.
        seed: of start values, data and noise; 0 where nothing is random.
        work: trains what is not trained yet, measures and returns the numbers.
        settings: what else the numbers depend on, beside the shipped weights and the demo's guidance; numbers kept
            under other values are not taken up.
    """

    name: str
    seed: int
    work: Callable[[], Numbers]
    settings: Mapping[str, object]


@dataclass(frozen=True)
class ExperimentRun:
    """Where and how much to train.

    Attributes:
        folder: numbers, weights and training states, outside of the repository.
        share: factor on every budget.
        seeds: 1 and up.
        lpips: network file for LPIPS, None to leave that column empty.
    """

    folder: Path
    share: float
    seeds: tuple[int, ...]
    lpips: Path | None = None

    def train_run(self, group: str, seed: int) -> TrainRun:
        """Return the training folder of a group."""
        return TrainRun(self.folder / group, torch.device("cpu"), torch.float32, seed=seed)

    def train(self, group: str, name: str, seed: int, objective: nn.Module, draw: Callable, budget: Budget) -> None:
        """Train an objective under a seed, or take up where an earlier run of the same start and length was left."""
        with torch.enable_grad():
            self.train_run(group, seed).train(
                f"{name}-seed{seed}-{budget.train.steps}steps", objective, draw, budget.train
            )
        objective.eval()

    def weights_file(self, group: str, name: str, seed: int) -> Path:
        """Return where the finished network of a run lies in the format of ``convert``."""
        path = self.folder / group / "weights" / f"{name}-seed{seed}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def finish(run: ExperimentRun, group: str, job: Job) -> Numbers:
    """Return the numbers of a job, working only if they are not there yet."""
    path = run.folder / group / f"{job.name}-seed{job.seed}.json".replace(" ", "_")
    settings = json.loads(
        json.dumps({**job.settings, "guidance_scale": DEFAULTS.guidance_scale, "weights": shipped_weights()})
    )
    if path.exists():
        kept = json.loads(path.read_text(encoding="ascii"))
        if kept["settings"] == settings:
            return kept["numbers"]
    numbers = job.work()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "numbers": numbers}, indent=1), encoding="ascii")
    return numbers


@cache
def shipped_weights() -> str:
    """Return what names the shipped weights all together."""
    return fingerprint(
        {f"{path.stem}.{k}": v for path in WEIGHTS.rglob("*.safetensors") for k, v in load_file(path).items()}
    )


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
