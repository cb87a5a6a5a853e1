"""The lines of an acceptance: what was checked, what came of it, and the table of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FusionFramesError
from ..files import atomic_path
from ..runtime.devices import OutOfMemoryError

PASSED, FAILED, NOT_HERE = "pass", "FAIL", "not here"


# What a line fails of; a card out of memory is one of torch's.
ERRORS = (FusionFramesError, RuntimeError, MemoryError)


class NotHereError(FusionFramesError):
    """This machine cannot do a check: it lacks a card, a dtype or memory, which is no failure of ours."""


@dataclass(frozen=True)
class Line:
    """One check.

    Attributes:
        check: what was checked.
        verdict: ``PASSED``, ``FAILED``, or ``NOT_HERE`` where this machine or torch cannot do it.
        measured: what came of it, in words.
        figures: the same as numbers.
    """

    check: str
    verdict: str
    measured: str
    figures: dict[str, Any] = field(default_factory=dict)


def guarded(check: str, make: Callable[[], Line], *, is_planned: bool = False) -> Line:
    """Return the line that ``make`` gives, or the one that says why there is none.

    Args:
        check: what is checked.
        make: does it.
        is_planned: what is checked is to stay within a plan, so that running out of memory is a failure.
    """
    try:
        return make()
    except ERRORS as error:
        return of_error(check, error, is_planned=is_planned)


def of_error(check: str, error: BaseException, *, is_planned: bool = False) -> Line:
    """Return the line of a check that ended in one of ``ERRORS``; ``is_planned`` as in ``guarded``."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if isinstance(error, NotHereError):
        return Line(check, NOT_HERE, said)
    if isinstance(error, OutOfMemoryError) and not is_planned:
        return Line(check, NOT_HERE, f"the device ran out of memory: {said}")
    return Line(check, FAILED, said)


def table(lines: Sequence[Line]) -> list[str]:
    """Return a table in Markdown; what is not here for the same reason shares a line."""
    rows: list[tuple[str, str, str]] = []
    absent: dict[str, list[str]] = {}
    for line in lines:
        if line.verdict == NOT_HERE:
            absent.setdefault(line.measured, []).append(line.check)
        else:
            rows.append((line.check, line.verdict, line.measured))
    rows += [("; ".join(checks), NOT_HERE, why) for why, checks in absent.items()]
    return ["| check | verdict | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]


def write_lines(path: Path, lines: Sequence[Line], told: dict[str, Any]) -> None:
    """Write lines as JSON.

    Args:
        path: file to write, complete or not at all.
        lines: of the acceptance.
        told: what else is worth knowing: the device, versions, seconds.
    """
    with atomic_path(path) as temporary:
        content = {**told, "lines": [asdict(line) for line in lines]}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
