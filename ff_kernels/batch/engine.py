"""The engine of a worker: first prompts to files, then those files to clips."""

import gc
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import __version__
from ..checkpoints.fingerprints import file_digest
from ..demo.model import demo_pipeline
from ..errors import InputError, OutputError
from ..files import atomic_path
from ..media.pictures import read_image
from ..pipeline.pipeline import Pipeline
from ..pipeline.writing import write_clip
from ..runtime.devices import DTYPES, choose_device, choose_dtype, empty_cache, name_of
from ..runtime.plan import Budget
from ..stages.run import Text
from .jobs import Job
from .ledger import Ledger
from .work import TEXT, EngineFactory, Task

_WARNINGS = "warnings"


@dataclass(frozen=True)
class ModelOptions:
    """What a worker opens, and how.

    Attributes:
        model: folder of weights; None is the demo model.
        device: torch device; None is the best that the worker's machine has.
        dtype: name of the dtype of the U-Nets; None is float16 on a card that computes in it, else float32.
        parity: "strict" or "fast", see ``Pipeline``.
        keeps_networks: keep every network of a clip loaded where the device has room for all of them; False never.
        uses_graphs: see ``Pipeline``.
        threads: threads of torch on a processor; None leaves them.
        loras: files with their strengths, see ``Pipeline``.
        budget: see ``Pipeline``; None is what is free.
    """

    model: Path | None = None
    device: str | None = None
    dtype: str | None = None
    parity: str = "fast"
    keeps_networks: bool = True
    uses_graphs: bool = True
    threads: int | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    budget: Budget | None = None


def open_pipeline(options: ModelOptions, device: str | None = None) -> Pipeline:
    """Open the model of a batch; no network is loaded yet.

    Args:
        options: see ``ModelOptions``.
        device: another device than the workers', which are elsewhere: for planning.

    Raises:
        InputError: if the folder, the device or the dtype does not exist.
        CheckpointError: if a file is damaged or missing.
    """
    chosen = choose_device(options.device) if device is None else torch.device(device)
    is_named = device is not None and options.dtype in DTYPES
    choices = {
        "device": chosen,
        "dtype": DTYPES[options.dtype] if is_named else choose_dtype(chosen, options.dtype),
        "keeps_networks": options.keeps_networks,
        "parity": options.parity,
        "uses_graphs": options.uses_graphs,
        "budget": options.budget,
        "loras": options.loras,
    }
    return demo_pipeline(**choices) if options.model is None else Pipeline.from_folder(options.model, **choices)


def clip_bytes(pipeline: Pipeline) -> int:
    """Return the bytes of all networks that turn encoded prompts into clips, in the dtypes they run in."""
    sizes = []
    for stage, (contents, _) in pipeline.models.files.items():
        if stage not in ("text_encoder", "projection"):
            width = 4 if "movq" in stage else pipeline.dtype.itemsize
            sizes.append(width * sum(tensor.numel() for tensor in contents.tensors.values()))
    return sum(sizes)


def engine_factory(options: ModelOptions, output: Path) -> EngineFactory:
    """Return what makes the engine inside of a worker's process."""
    return partial(_make_engine, options, output)


def _make_engine(options: ModelOptions, output: Path, name: str, workplace: Path) -> "ClipEngine":
    return ClipEngine(options, Ledger(output), name, workplace)


class ClipEngine:
    """Encodes prompts with one pipeline, lets it go, and makes clips with another that never sees the text encoder.

    Args:
        options: the model.
        ledger: where contexts and clips go.
        name: of the worker, for the records.
        workplace: folder of what is not finished; on the file system of the ledger.
    """

    def __init__(self, options: ModelOptions, ledger: Ledger, name: str, workplace: Path) -> None:
        self._options, self._ledger, self._name, self._workplace = options, ledger, name, workplace
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._kind, self._pipeline = "", None

    def do(self, task: Task, beat: Callable[..., None]) -> Mapping[str, Any]:
        """Encode a prompt or make a clip.

        Raises:
            InputError: if the row is wrong.
            OutputError: if a result cannot be written.
        """
        pipeline = self._opened(task.kind)
        return self._encode(pipeline, task.jobs[0]) if task.kind == TEXT else self._make(pipeline, task.jobs[0], beat)

    def _opened(self, kind: str) -> Pipeline:
        """Return the pipeline for a kind of task; that of the other kind leaves the device first."""
        if self._kind != kind:
            if self._pipeline is not None:
                device, self._pipeline = self._pipeline.device, None
                gc.collect()
                empty_cache(device)
            self._pipeline = open_pipeline(self._options)
            self._kind = kind
        return self._pipeline

    def _encode(self, pipeline: Pipeline, job: Job) -> dict[str, Any]:
        path = self._ledger.context(job.text_key)
        with _said() as said:
            # One by one, as for a single clip: beside a longer prompt the words would be padded, and rounded, anew.
            texts = {"text": pipeline.encode_text([job.prompt])}
            if job.negative:
                mended = job.settings.is_mended
                texts["negative"] = pipeline.encode_negative([job.negative], [job.prompt], is_mended=mended)
        tensors = {
            f"{name}.{part}": getattr(text, part).cpu().contiguous()
            for name, text in texts.items()
            for part in ("context", "mask", "lengths")
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={_WARNINGS: json.dumps(said)})
        return {"warnings": said} if said else {}

    def _make(self, pipeline: Pipeline, job: Job, beat: Callable[..., None]) -> dict[str, Any]:
        *texts, warned = _read_texts(self._ledger.context(job.text_key), pipeline.device)
        picture = None if job.image is None else read_image(job.image)
        draft = self._workplace / f"{job.key}.mp4"
        with _said() as said:
            clip, _ = write_clip(
                pipeline, job.prompt, job.settings, draft, decoder=job.decoder, progress=beat,
                negative=job.negative, picture=picture, texts=tuple(texts),
            )  # fmt: skip
        size, digest = draft.stat().st_size, file_digest(draft)
        self._publish(draft, self._ledger.video(job.key))
        record = {
            "prompt": job.prompt,
            "negative": job.negative,
            "image": None if job.image is None else str(job.image),
            "settings": asdict(job.settings),
            "frames": len(clip.latents),
            "fps": clip.fps,
            "sha256": digest,
            "bytes": size,
            "seconds": {stage: round(seconds, 4) for stage, seconds in clip.seconds.items()},
            "rows": list(job.labels),
            "made_of": dict(job.origin),
            "engine": __version__,
            "worker": self._name,
            "device": name_of(pipeline.device),
            "threads": torch.get_num_threads(),
            **({"warnings": warned + said} if warned + said else {}),
        }
        self._ledger.commit(job.key, record)
        return {"seconds": record["seconds"], "frames": record["frames"], "bytes": size}

    @staticmethod
    def _publish(draft: Path, video: Path) -> None:
        """Give a complete file its name; on the disk before its record can be."""
        try:
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            video.parent.mkdir(parents=True, exist_ok=True)
            draft.replace(video)
        except OSError as error:
            raise OutputError(f"could not write '{video}': {error.strerror or error}; check the device") from error


def _read_texts(path: Path, device: torch.device) -> tuple[Text, Text | None, list[str]]:
    """Return an encoded prompt, its negative prompt, and what was warned of as they were encoded."""
    try:
        with safe_open(path, framework="pt") as file:
            warned = json.loads((file.metadata() or {}).get(_WARNINGS, "[]"))
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise InputError(f"expected the encoded prompt at '{path}', found none: run the batch again") from error
    texts = [
        Text(*(tensors[f"{name}.{part}"] for part in ("context", "mask", "lengths"))) if f"{name}.context" in tensors
        else None
        for name in ("text", "negative")
    ]  # fmt: skip
    return texts[0], texts[1], warned


@contextmanager
def _said() -> Iterator[list[str]]:
    """Collect the texts of warnings, for the record of what they are about."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", UserWarning)
        yield said
    said += [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
