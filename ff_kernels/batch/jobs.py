"""Rows checked against the model and joined to jobs: one job, one key, one clip."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import FusionFramesError, InputError
from ..media.pictures import read_image
from ..pipeline.pipeline import Pipeline
from ..pipeline.settings import LEVELS, Settings
from .fingerprints import file_digest, weights_fingerprint
from .rows import DECODERS, Row

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


def make_plan(rows: Sequence[Row], pipeline: Pipeline, defaults: RowDefaults) -> Plan:
    """Check every row and join rows that ask for the same clip; no network is loaded.

    Args:
        rows: see ``read_rows``.
        pipeline: the opened model in the dtype it will run in.
        defaults: what rows start from.
    """
    planner = _Planner(pipeline, defaults)
    jobs: dict[str, Job] = {}
    refusals = []
    for row in rows:
        try:
            job = planner.job(row)
        except FusionFramesError as error:
            key = key_of({"row": dict(row.raw)})
            refusals.append(Refusal(key, row, str(error)))
            continue
        if job.key in jobs:
            job = replace(jobs[job.key], labels=(*jobs[job.key].labels, *job.labels))
        jobs[job.key] = job
    return Plan(list(jobs.values()), refusals)


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


class _Planner:
    """Makes jobs of rows; every weights file and picture is read once."""

    def __init__(self, pipeline: Pipeline, defaults: RowDefaults) -> None:
        self._pipeline, self._defaults = pipeline, defaults
        files = pipeline.models.files
        self._weights = {stage: weights_fingerprint(contents) for stage, (contents, _) in files.items()}
        self._weights["tokenizer"] = file_digest(pipeline.models.tokenizer)[:KEY_DIGITS]
        self._how = {"dtype": str(pipeline.dtype).removeprefix("torch."), "parity": pipeline.parity}
        self._pictures: dict[Path, str] = {}

    def job(self, row: Row) -> Job:
        """Return the job of a row.

        Raises:
            InputError: if the row is wrong.
            CheckpointError: if the model lacks what it needs.
        """
        if row.problem is not None:
            raise InputError(row.problem)
        pipeline, defaults = self._pipeline, self._defaults
        settings = pipeline.resolve(replace(defaults.settings, **row.settings))
        negative, image = row.negative or defaults.negative, row.image or defaults.image
        decoder = DECODERS.get(row.decoder or defaults.decoder or "")
        picture = None if image is None else self._picture(image)
        passes = LEVELS[settings.fps][0]
        pipeline.check_inputs(negative, has_picture=image is not None, passes=passes, decoder=decoder)
        text = {
            "prompt": row.prompt,
            "negative": negative,
            "weights": {s: self._weights[s] for s in ("text_encoder", "projection", "tokenizer") if s in self._weights},
            **self._how,
        }
        if "projection" not in text["weights"]:
            text["weights"]["keyframe"] = self._weights["keyframe"]
        used = {"text_encoder", "projection", "tokenizer", "keyframe", decoder or pipeline.decoder_stage}
        used |= {pipeline.gap_stage} if passes else set()
        # Release 1.1 encodes its first frame, given or drawn.
        used |= {"movq", "video_movq"} if pipeline.family == "1.1" else set()
        origin = {
            "sampler": SAMPLER_VERSION,
            "prompt": row.prompt,
            "negative": negative,
            "image": picture,
            "decoder": decoder or pipeline.decoder_stage,
            "settings": drawn_settings(settings),
            "weights": {stage: digest for stage, digest in self._weights.items() if stage in used},
            **self._how,
        }
        return Job(key_of(origin), key_of(text), row.prompt, settings, negative, image, decoder, (row.label,), origin)

    def _picture(self, path: Path) -> str:
        if path not in self._pictures:
            # Decoded here once, so that a damaged one is known before a network is loaded.
            read_image(path)
            self._pictures[path] = file_digest(path)
        return self._pictures[path]
