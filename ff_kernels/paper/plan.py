"""Which jobs there are, in which order they run, and how long each takes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import decoders, gaps, variants
from .runs import ExperimentRun, Job, find_record

GROUPS = {module.GROUP: module for module in (variants, gaps, decoders)}
# Processor seconds of a step on an EPYC, measured beside other work, those of the variants with their many captions;
# and what measuring adds to training.
STEP_SECONDS: Mapping[str, Mapping[str, float]] = {
    gaps.GROUP: {gaps.OURS: 0.24, gaps.OURS_EQUAL_TIME: 0.22, gaps.MASKED: 1.2},
    decoders.GROUP: {
        "conv1d-temporal": 0.6, "conv3d-temporal": 0.9, "conv1d": 0.7, "conv3d": 1.1, "conv1d-attn": 0.7,
        "conv3d-attn": 1.1, "resnet-attn": 0.9, "inflated": 1.0,
    },
    variants.GROUP: dict.fromkeys(variants.PAPER, 1.3),
}  # fmt: skip
MEASURING = 1.15
UNTRAINED_HOURS = 0.02


def jobs_of(run: ExperimentRun, groups: Iterable[str]) -> list[Job]:
    """Return the jobs of some tables in their order: a first seed of every table, then a second of every table."""
    jobs = [(max(job.seed, 1), place, job) for place, name in enumerate(groups) for job in GROUPS[name].jobs(run)]
    return [job for *_, job in sorted(jobs, key=lambda entry: entry[:2])]


def hours(job: Job) -> float:
    """Return the hours of one core that a job needs, measuring included."""
    if job.training is None:
        return UNTRAINED_HOURS
    return MEASURING * job.training.budget.train.steps * STEP_SECONDS[job.group][job.name] / 3600


def list_jobs(run: ExperimentRun, jobs: Sequence[Job]) -> list[str]:
    """Return a line for every job, done or with its hours, and one for all of them."""
    lines, left = [], 0.0
    for job in jobs:
        is_done = find_record(run, job) is not None
        left += 0.0 if is_done else hours(job)
        lines.append(f"{'done' if is_done else f'{hours(job):.2f} h':>7}  {job.stem}")
    total = sum(map(hours, jobs))
    return [*lines, f"{total:.1f} hours of one core for all of them, {left:.1f} left"]


def gather(run: ExperimentRun, jobs: Iterable[Job]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the records of the jobs that are done, by table, row and seed."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for job in jobs:
        record = find_record(run, job)
        if record is not None:
            found.setdefault(job.group, {}).setdefault(job.name, {})[str(job.seed)] = record
    return found
