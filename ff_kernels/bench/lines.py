"""The lines of an acceptance: what was checked, what came of it, and the table of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import atomic_path

PASSED, FAILED, NOT_HERE = "pass", "FAIL", "not here"


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
