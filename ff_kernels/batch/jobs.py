"""One job, one key, one clip: what is to be made, and what names it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..pipeline.settings import Settings
from .rows import Row

# Raised when the same settings on the same weights give other pictures than before.
SAMPLER_VERSION = 1
KEY_DIGITS = 16
# Settings that say how a clip is computed, not what it shows: a retry may change them under the same key.
HOW = ("is_stacked",)


@dataclass(frozen=True)
class RowDefaults:
    """What a row starts from where its columns are empty.

    Attributes:
        settings: see ``Settings``.
        negative: what no video should show, release 1.0.
        image: picture to start from, release 1.1.
        decoder: "image" or "video"; None takes the release's.
    """

    settings: Settings = field(default_factory=Settings)
    negative: str | None = None
    image: Path | None = None
    decoder: str | None = None


@dataclass(frozen=True)
class Job:
    """One clip to be made.

    Attributes:
        key: 16 hex digits that name the clip.
        text_key: the same for what its text encodes to.
        prompt: what the video shows.
        settings: resolved.
        negative: what it should not show.
        image: picture to start from.
        decoder: stage of the decoder, None for the release's.
        labels: name and foreign columns of every row that asks for this clip.
        origin: what the key is made of, for the record.
    """

    key: str
    text_key: str
    prompt: str
    settings: Settings
    negative: str | None = None
    image: Path | None = None
    decoder: str | None = None
    labels: tuple[Mapping[str, Any], ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A row that can never become a clip, and why."""

    key: str
    row: Row
    problem: str


@dataclass(frozen=True)
class Plan:
    """What a file of prompts asks for.

    Attributes:
        jobs: in the order of the file, each key once.
        refusals: rows that are wrong.
    """

    jobs: Sequence[Job]
    refusals: Sequence[Refusal]

    def shard(self, index: int, count: int) -> "Plan":
        """Return the part of one of ``count`` runs that share the rows; a row's part depends on its key only."""

        def mine(key: str) -> bool:
            return int(key, 16) % count == index

        return Plan([job for job in self.jobs if mine(job.key)], [row for row in self.refusals if mine(row.key)])

    @property
    def keys(self) -> set[str]:
        """All keys, of refused rows too."""
        return {job.key for job in self.jobs} | {refusal.key for refusal in self.refusals}


def key_of(content: Mapping[str, Any]) -> str:
    """Return the first 16 hex digits of the sha256 over an object."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def drawn_settings(settings: Settings) -> dict[str, Any]:
    """Return what of the settings decides what a clip shows.

    Values that every field has by itself are left out, so that a field added later leaves the keys of old clips alone.
    """
    plain = {f.name: f.default for f in fields(Settings)}
    return {k: v for k, v in asdict(settings).items() if k not in HOW and v != plain[k]}
