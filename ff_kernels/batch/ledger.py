"""The folder of a batch as its ledger: which clips are done, which rows failed, and nothing else that could disagree.

``clips/ab/<key>.mp4`` is a clip and ``clips/ab/<key>.json`` its record, which is written after it: a clip is done when
its record can be read. ``failed/<key>.json`` says why a row failed. ``contexts/`` holds encoded prompts and may be
deleted, ``work/`` what is being made. Every file appears whole under its name or not at all.
"""

import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import atomic_path

# When a row was found to be wrong, as its failure says it.
CHECKING = "checking the row"
# Hosts of a cluster may share a name, and never the address of a network card.
HOST = f"{socket.gethostname()}.{uuid.getnode():x}"
# A worker that gave no sign for so long is dead: its driver would have ended it long before.
ABANDONED_SECONDS = 6 * 3600.0


class Ledger:
    """Paths and records of one batch.

    Args:
        folder: output folder of the batch; made if it is missing.

    Raises:
        InputError: if there is no such folder and it cannot be made, or it is not writable.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the output folder '{folder}': {error.strerror}: choose another") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise InputError(f"expected a writable folder, got '{folder}': choose another")

    @property
    def events(self) -> Path:
        """What happened, a line per event."""
        return self.folder / "events.jsonl"

    def video(self, key: str) -> Path:
        """Where a clip is."""
        return self.folder / "clips" / key[:2] / f"{key}.mp4"

    def context(self, text_key: str) -> Path:
        """Where an encoded prompt is."""
        return self.folder / "contexts" / text_key[:2] / f"{text_key}.safetensors"

    def workplace(self, worker: str) -> Path:
        """Where a worker writes what is not finished."""
        return self.folder / "work" / worker

    def record(self, key: str) -> dict[str, Any] | None:
        """Return the record of a finished clip, None if there is none or only a part of one."""
        return _read(self.video(key).with_suffix(".json"), key)

    def is_done(self, key: str) -> bool:
        """Whether a clip is finished."""
        return self.record(key) is not None

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records of all finished clips in the order of their keys."""
        for path in sorted((self.folder / "clips").glob("*/*.json")):
            found = _read(path, path.stem)
            if found is not None:
                yield found

    def commit(self, key: str, record: dict[str, Any]) -> None:
        """Write the record that makes a clip count as done; an earlier failure of the row is forgotten.

        Raises:
            OutputError: if it cannot be written.
        """
        write_json(self.video(key).with_suffix(".json"), {"key": key, **record})
        with suppress(OSError):
            self._failure(key).unlink(missing_ok=True)

    def failure(self, key: str) -> dict[str, Any] | None:
        """Return why a row failed, None if it did not."""
        return _read(self._failure(key), key)

    def failures(self) -> Iterator[dict[str, Any]]:
        """Yield why rows failed, in the order of their keys; a clip that is done since then is not among them."""
        for path in sorted((self.folder / "failed").glob("*.json")):
            found = _read(path, path.stem)
            if found is not None and not self.is_done(path.stem):
                yield found

    def refused(self) -> set[str]:
        """Return the keys of rows that were wrong before anything ran."""
        return {failure["key"] for failure in self.failures() if failure.get("while") == CHECKING}

    def fail(self, key: str, failure: dict[str, Any]) -> None:
        """Write down why a row failed.

        Raises:
            OutputError: if it cannot be written.
        """
        write_json(self._failure(key), {"key": key, **failure})

    def forget_failures(self, keys: set[str]) -> None:
        """Let these rows be tried again."""
        for key in keys:
            self._failure(key).unlink(missing_ok=True)

    def _failure(self, key: str) -> Path:
        return self.folder / "failed" / f"{key}.json"

    def release(self, worker: str) -> None:
        """Remove what a worker that is gone left unfinished."""
        shutil.rmtree(self.workplace(worker), ignore_errors=True)

    def sweep(self) -> int:
        """Remove what workers of runs that are gone left unfinished; return how many other workers may be alive."""
        alive = 0
        for place in (self.folder / "work").glob("*"):
            if _is_abandoned(place):
                shutil.rmtree(place, ignore_errors=True)
            else:
                alive += 1
        with suppress(OSError):
            (self.folder / "work").rmdir()
        return alive


def worker_name(role: str, number: int) -> str:
    """Return a name that says whose worker this is: host and process of its driver, so that others can tell its end."""
    return f"{role}-{HOST}-{os.getpid()}-{number}"


def _is_abandoned(place: Path) -> bool:
    """Whether the driver of a workplace, named by ``worker_name``, is gone."""
    parts = place.name.rsplit("-", 2)
    with suppress(ValueError, IndexError):
        if parts[0].endswith(f"-{HOST}"):
            return not _is_alive(int(parts[1]))
    try:
        newest = max(path.stat().st_mtime for path in (place, *place.iterdir()))
    except OSError:
        return False
    return time.time() - newest > ABANDONED_SECONDS


def _is_alive(process: int) -> bool:
    if os.name == "nt":
        # There a signal of 0 ends the process; its workplace goes by age.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as one readable JSON file, whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    with atomic_path(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read(path: Path, key: str) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None
