"""The page: what stands between its marks follows from the kept numbers, so that a run more is one command more."""

import re
from collections.abc import Mapping, Sequence

from ..bench.quality_report import RESULTS as QUALITY
from ..bench.quality_report import read_results, table
from ..files import atomic_path
from . import RESULTS
from .curves import CURVES
from .runs import Job
from .tables import MAKERS, Records
from .verdicts import VERDICTS, presets_verdict

PAGE = RESULTS.parent / "README.md"
PRESETS = "presets"


def section(group: str, done: Mapping[str, Records], jobs: Sequence[Job]) -> list[str]:
    """Return the lines of a table: its sentence, how many jobs are in, the numbers, the pictures."""
    records = done.get(group, {})
    ranked = is_ranked(group, done, jobs)
    words = state(group, records, jobs)
    words += VERDICTS[group](records) if ranked else "No seed is complete, so nothing ranks yet."
    lines = [words, ""]
    if records:
        lines += [*MAKERS[group](records), ""]
    if ranked:
        lines += [f"![{group}: a bar per row, a dot per seed, a line for the spread](results/{group}.png)", ""]
    if ranked and group in CURVES:
        lines += [f"![{group}: {CURVES[group][1]}, while training](results/{group}-curves.png)", ""]
    return lines[:-1]


def state(group: str, records: Records, jobs: Sequence[Job]) -> str:
    """Return how many of the jobs of a table, and how many whole seeds, are in; nothing where all are."""
    wanted = [job for job in jobs if job.group == group]
    has = sum(str(job.seed) in records.get(job.name, {}) for job in wanted)
    if has == len(wanted):
        return ""
    seeds = {job.seed for job in wanted} - {0}
    whole = [seed for seed in seeds if _is_whole(seed, records, wanted)]
    return f"{has} of {len(wanted)} jobs and {len(whole)} of {len(seeds)} seeds are in. "


def is_ranked(group: str, done: Mapping[str, Records], jobs: Sequence[Job]) -> bool:
    """Whether at least one seed of every row of a table is in."""
    wanted = [job for job in jobs if job.group == group]
    return any(_is_whole(seed, done.get(group, {}), wanted) for seed in {job.seed for job in wanted} - {0})


def _is_whole(seed: int, records: Records, wanted: Sequence[Job]) -> bool:
    return all(str(job.seed) in records.get(job.name, {}) for job in wanted if job.seed in (0, seed))


def presets_section() -> list[str]:
    """Return the lines of the whole model against itself on few steps, from the kept results of the benchmark."""
    rows = read_results(QUALITY)["rows"]
    return [presets_verdict(rows), "", *table(rows), "", "![Figures against seconds](../bench/results/quality.png)"]


def render(text: str, done: Mapping[str, Records], jobs: Sequence[Job]) -> str:
    """Return the page with what stands between its marks made anew."""
    parts = {group: section(group, done, jobs) for group in MAKERS} | {PRESETS: presets_section()}
    for name, lines in parts.items():
        body = "\n".join([f"<!-- {name} -->", *lines, f"<!-- end of {name} -->"])
        pattern = rf"<!-- {name} -->.*?<!-- end of {name} -->"
        text = re.sub(pattern, lambda _, body=body: body, text, flags=re.DOTALL)
    return text


def write(done: Mapping[str, Records], jobs: Sequence[Job]) -> None:
    """Make the page anew."""
    text = render(PAGE.read_text(encoding="utf-8"), done, jobs)
    with atomic_path(PAGE) as path:
        path.write_text(text, encoding="utf-8")
