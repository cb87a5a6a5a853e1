"""Rows checked against the model and joined to jobs; no network is loaded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..checkpoints.fingerprints import file_digest, weights_fingerprint
from ..errors import FusionFramesError, InputError
from ..media.pictures import read_image
from ..pipeline.pipeline import Pipeline
from ..pipeline.prompts import require_prompts
from ..pipeline.settings import LEVELS
from .jobs import KEY_DIGITS, SAMPLER_VERSION, Job, Plan, Refusal, RowDefaults, drawn_settings, key_of
from .rows import DECODERS, Row


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


class _Planner:
    """Makes jobs of rows; every weights file and picture is read once."""

    def __init__(self, pipeline: Pipeline, defaults: RowDefaults) -> None:
        self._pipeline, self._defaults = pipeline, defaults
        files = pipeline.models.files
        self._weights = {stage: weights_fingerprint(contents) for stage, (contents, _) in files.items()}
        self._weights["tokenizer"] = file_digest(pipeline.models.tokenizer)[:KEY_DIGITS]
        self._how = {"dtype": str(pipeline.dtype).removeprefix("torch."), "parity": pipeline.networks.parity}
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
        negative = row.negative or defaults.negative
        image = row.image or (None if defaults.image is None else defaults.image.absolute())
        decoder = DECODERS.get(row.decoder or defaults.decoder or "")
        require_prompts([row.prompt, *filter(None, [negative])])
        picture = None if image is None else self._picture(image)
        passes = LEVELS[settings.fps][0]
        pipeline.check_inputs(negative, has_picture=image is not None, passes=passes, decoder=decoder)
        text = {
            "prompt": row.prompt,
            "negative": negative,
            "weights": {s: self._weights[s] for s in ("text_encoder", "projection", "tokenizer") if s in self._weights},
            **self._how,
        }
        if negative and settings.is_mended:
            text["mended"] = True
        if "projection" not in text["weights"]:
            text["weights"]["keyframe"] = self._weights["keyframe"]
        used = {"text_encoder", "projection", "tokenizer", "keyframe", decoder or pipeline.release.decoder}
        used |= {pipeline.gap_stage} if passes else set()
        # Release 1.1 encodes its first frame, given or drawn.
        used |= {"movq", "video_movq"} if pipeline.release.reads_image else set()
        origin = {
            "sampler": SAMPLER_VERSION,
            "prompt": row.prompt,
            "negative": negative,
            "image": picture,
            "decoder": decoder or pipeline.release.decoder,
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
