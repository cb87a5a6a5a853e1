"""A file of prompts as rows: jsonl, csv, txt and, where pyarrow is installed, parquet."""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import InputError
from ..pipeline.settings import Settings

SUFFIXES = (".jsonl", ".csv", ".txt", ".parquet")
# Columns that are no setting: what is drawn, what it starts from, which decoder, what the caller calls it.
OWN_COLUMNS = ("prompt", "negative", "image", "decoder", "id")
DECODERS = {"image": "movq", "video": "video_movq"}
SETTINGS = tuple(f.name for f in fields(Settings))
# What else people call our columns. An unknown column travels into the record, so one of these would silently not act.
MISTAKEN = {
    "text": "prompt", "caption": "prompt", "negative_prompt": "negative", "picture": "image", "image_path": "image",
    "guidance": "guidance_scale", "num_frames": "keyframes", "motion": "motion_score", "mend": "is_mended",
}  # fmt: skip
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Row:
    """One row of a file of prompts, as it was asked for.

    Attributes:
        number: place in the file, from 1; of a txt or jsonl file the line.
        raw: the columns as they were read.
        prompt: what the video shows.
        settings: fields of ``Settings`` that the row gives.
        negative: what the video should not show, release 1.0.
        image: picture to start from, release 1.1.
        decoder: "image" or "video".
        id: what the caller calls the row.
        extra: columns that mean nothing to the engine.
        problem: why the row cannot be read, in a sentence; None where it can.
    """

    number: int
    raw: Mapping[str, Any]
    prompt: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    negative: str | None = None
    image: Path | None = None
    decoder: str | None = None
    id: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def label(self) -> dict[str, Any]:
        """What travels into the record of the clip: the row's own name and its foreign columns."""
        return {"id": self.number if self.id is None else self.id, **self.extra}


def read_rows(path: str | Path) -> list[Row]:
    """Return the rows of a file of prompts; a row that cannot be read says so in its ``problem``.

    Args:
        path: jsonl (an object per line), csv (with a header), txt (a prompt per line) or parquet. Columns are
            "prompt", any field of ``Settings``, "negative", "image" (relative to the file), "decoder", "id"; an empty
            cell takes the default; other columns are kept for the record.

    Raises:
        InputError: if the file is missing, of another kind, empty, or has no prompts.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"expected a file of prompts at '{path}', found {found}: check the path")
    read = {".jsonl": _jsonl, ".csv": _csv, ".txt": _txt, ".parquet": _parquet}.get(path.suffix.lower())
    if read is None:
        raise InputError(f"expected prompts in {', '.join(SUFFIXES)}, got '{path}': write one of these")
    try:
        rows = [_row(number, raw, path) for number, raw in read(path)]
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8 text in '{path}', got other bytes ({error.reason}): save it again") from error
    except OSError as error:
        raise InputError(f"cannot read the prompts '{path}': {error.strerror or error}") from error
    if not rows:
        raise InputError(f"expected at least one prompt in '{path}', found none: write one a line")
    return rows


def _txt(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    # Not splitlines: it also parts at characters that JSON allows inside of a string.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError:
            yield number, line


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        _require_prompts(path, reader.fieldnames or ())
        for number, raw in enumerate(reader, 1):
            yield number, f"more cells than the header names: {raw[None]}" if None in raw else raw


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(
            f"expected pyarrow to read '{path}', found none: pip install 'fusionframes[parquet]', or write jsonl"
        ) from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise InputError(f"expected a parquet file at '{path}', found a damaged or other one: save it again") from error
    _require_prompts(path, table.column_names)
    yield from enumerate(table.to_pylist(), 1)


def _require_prompts(path: Path, columns: Any) -> None:
    if "prompt" not in columns:
        raise InputError(f"expected a column 'prompt' in '{path}', got {', '.join(map(str, columns))}: name one so")


def _row(number: int, raw: Any, path: Path) -> Row:
    if not isinstance(raw, dict):
        return Row(number, {"line": str(raw)}, problem=f"expected an object of columns, got '{str(raw)[:80]}'")
    given = {str(name): value for name, value in raw.items() if not _is_empty(value)}
    try:
        is_text = path.suffix.lower() == ".csv"
        return _typed(number, given, path.parent, is_text)
    except InputError as error:
        return Row(number, given, problem=str(error))


def _typed(number: int, given: dict[str, Any], folder: Path, is_text: bool) -> Row:
    for name in given.keys() & MISTAKEN.keys():
        raise InputError(f"expected the column '{MISTAKEN[name]}', got '{name}': rename it")
    settings = {name: _setting(name, given[name], is_text) for name in SETTINGS if name in given}
    texts = {name: _own_text(name, given[name]) for name in OWN_COLUMNS if name in given}
    if not texts.get("prompt", "").strip():
        raise InputError("expected a prompt, got an empty text: describe what the video shows")
    decoder = texts.get("decoder")
    if decoder is not None and decoder not in DECODERS:
        raise InputError(f"expected a decoder image or video, got '{decoder}': choose one of them")
    extra = {name: value for name, value in given.items() if name not in SETTINGS and name not in OWN_COLUMNS}
    return Row(
        number, given, texts["prompt"], settings, texts.get("negative"),
        (folder / texts["image"]).absolute() if "image" in texts else None, decoder, texts.get("id"), _plain(extra),
    )  # fmt: skip


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _own_text(name: str, value: Any) -> str:
    if name == "id" and isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"expected a text as {name}, got {value!r}: put it in quotes")
    return value


def _setting(name: str, value: Any, is_text: bool) -> Any:
    hint = get_type_hints(Settings)[name]
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    if get_origin(kinds[0]) is tuple:
        return _numbers(name, get_args(kinds[0]), value)
    for kind in kinds:
        found = _from_text(kind, value) if is_text else _as_kind(kind, value)
        if found is not None:
            return found
    wanted = {int: "a whole number", float: "a number", bool: "true or false"}.get(kinds[0], "a text")
    raise InputError(f"expected {wanted} as {name}, got {value!r}: correct the cell")


def _numbers(name: str, kinds: tuple[type, ...], value: Any) -> tuple[Any, ...]:
    """Return several numbers: a list, or in one text with spaces or commas between them."""
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    found: list[Any] = []
    if isinstance(parts, (list, tuple)) and len(parts) == len(kinds):
        pairs = zip(kinds, parts, strict=True)
        found = [_from_text(kind, part) if isinstance(part, str) else _as_kind(kind, part) for kind, part in pairs]
    if not found or None in found:
        raise InputError(f"expected {len(kinds)} numbers as {name}, got {value!r}: correct the cell")
    return tuple(found)


def _from_text(kind: type, text: str) -> Any:
    if kind is bool:
        return _TRUTH.get(text.strip().lower())
    try:
        return kind(text.strip())
    except ValueError:
        return None


def _as_kind(kind: type, value: Any) -> Any:
    if kind is int and isinstance(value, float) and value.is_integer():
        # Tables turn whole numbers into floats where a cell of the column is empty.
        return int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value if type(value) is kind else None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return columns as JSON can hold them; dates of a table become text."""
    return json.loads(json.dumps(values, default=str))
