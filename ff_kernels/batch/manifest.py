"""What is made from the records and can be made again: the list of all clips, and tar files for training on them."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import atomic_path
from .ledger import Ledger

SHARD_BYTES = 1 << 30


def manifest_rows(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Yield a flat row per row of the prompts whose clip is there, in the order of the keys."""
    for record in ledger.records():
        for row in record["rows"]:
            yield {
                "key": record["key"],
                "video": ledger.video(record["key"]).relative_to(ledger.folder).as_posix(),
                **{name: record[name] for name in ("prompt", "negative", "image", "frames", "fps", "bytes", "sha256")},
                **record["settings"],
                "seconds": round(sum(record["seconds"].values()), 4),
                # Last, and never in the place of one of ours.
                **{name if name == "id" else f"row.{name}": value for name, value in row.items()},
            }


def write_manifest(ledger: Ledger) -> list[Path]:
    """Write ``manifest.jsonl`` and, where pyarrow is installed, ``manifest.parquet``; return what was written.

    Raises:
        OutputError: if one cannot be written.
    """
    rows = list(manifest_rows(ledger))
    written = [ledger.folder / "manifest.jsonl"]
    with atomic_path(written[0]) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return written
    if rows:
        written.append(ledger.folder / "manifest.parquet")
        with atomic_path(written[-1]) as temporary:
            parquet.write_table(pyarrow.table(_columns(rows)), temporary)
    return written


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns of one kind each: where kinds differ, as text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    for name, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int, float}:
            columns[name] = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1 or kinds & {dict, list}:
            columns[name] = [
                value if value is None or isinstance(value, str) else json.dumps(value) for value in values
            ]
    return columns


def pack_tars(ledger: Ledger, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Write all clips as webdataset shards ``packs/clips-00000.tar`` of ``<key>.mp4`` and ``<key>.json``.

    The same clips give the same bytes. Shards that an earlier call wrote and this one does not are removed.

    Args:
        ledger: the batch.
        shard_bytes: a shard is full when it holds as many bytes of video.

    Raises:
        InputError: if no clip is done.
        OutputError: if a shard cannot be written.
    """
    folder = ledger.folder / "packs"
    written: list[Path] = []
    part: list[dict[str, Any]] = []
    size = 0
    for record in ledger.records():
        if part and size + record["bytes"] > shard_bytes:
            written.append(_write_tar(ledger, folder, len(written), part))
            part, size = [], 0
        part.append(record)
        size += record["bytes"]
    if not part:
        raise InputError(f"expected finished clips in '{ledger.folder}' to pack, found none: run the batch first")
    written.append(_write_tar(ledger, folder, len(written), part))
    for stale in set(folder.glob("clips-*.tar")) - set(written):
        stale.unlink(missing_ok=True)
    return written


def _write_tar(ledger: Ledger, folder: Path, number: int, records: list[dict[str, Any]]) -> Path:
    path = folder / f"clips-{number:05}.tar"
    with atomic_path(path) as temporary:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for record in records:
                video = ledger.video(record["key"])
                with video.open("rb") as file:
                    tar.addfile(_entry(video.name, video.stat().st_size), file)
                text = json.dumps(record).encode()
                tar.addfile(_entry(f"{record['key']}.json", len(text)), io.BytesIO(text))
    return path


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry
