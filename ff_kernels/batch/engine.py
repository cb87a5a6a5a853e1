"""The engine of a worker: first prompts to files, then those files to clips."""

import gc
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
from ..demo.model import demo_pipeline
from ..errors import InputError, OutputError
from ..files import atomic_path
from ..media.pictures import read_image
from ..pipeline.pipeline import Pipeline
from ..pipeline.writing import write_clip
from ..runtime.budget import RESERVE_BYTES
from ..stages.run import Text
from .fingerprints import file_digest
from .jobs import Job
from .ledger import Ledger
from .work import TEXT, EngineFactory, Task


@dataclass(frozen=True)
class ModelOptions:
    """What a worker opens, and how.

    Attributes:
        model: folder of weights; None is the demo model.
        device: torch device; None is CUDA where the worker has one, else the processor.
        dtype: name of the dtype of the U-Nets; None is float16 on CUDA, else float32.
        parity: "strict" or "fast", see ``Pipeline``.
        keeps_networks: keep every network of a clip loaded; None does where the device has room for all of them.
        uses_graphs: see ``Pipeline``.
        threads: threads of torch on a processor; None leaves them.
    """

    model: Path | None = None
    device: str | None = None
    dtype: str | None = None
    parity: str = "fast"
    keeps_networks: bool | None = None
    uses_graphs: bool = True
    threads: int | None = None

    @property
    def device_name(self) -> str:
        """The device asked for, or the best that this process has."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype_name(self) -> str:
        """The dtype asked for, or that of the device."""
        return self.dtype or ("float16" if self.device_name.startswith("cuda") else "float32")


def open_pipeline(options: ModelOptions, **changed: Any) -> Pipeline:
    """Open the model of a batch; no network is loaded yet.

    Args:
        options: see ``ModelOptions``.
        **changed: options of ``Pipeline`` that differ, such as ``device``.

    Raises:
        InputError: if the folder or the dtype does not exist.
        CheckpointError: if a file is damaged or missing.
    """
    choices = {
        "device": options.device_name,
        "dtype": getattr(torch, options.dtype_name),
        "keeps_networks": options.keeps_networks is not False,
        "parity": options.parity,
        "uses_graphs": options.uses_graphs,
        **changed,
    }
    if options.model is None:
        return demo_pipeline(**choices)
    return Pipeline.from_folder(options.model, **choices)


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
            self._pipeline = None
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            self._pipeline = open_pipeline(self._options)
            self._pipeline.keeps_networks = kind == TEXT or self._keeps(self._pipeline)
            self._kind = kind
        return self._pipeline

    def _keeps(self, pipeline: Pipeline) -> bool:
        if self._options.keeps_networks is not None or pipeline.device.type != "cuda":
            return self._options.keeps_networks is not False
        free, _ = torch.cuda.mem_get_info(pipeline.device)
        return clip_bytes(pipeline) + RESERVE_BYTES <= free

    def _encode(self, pipeline: Pipeline, job: Job) -> dict[str, Any]:
        path = self._ledger.context(job.text_key)
        with _said() as said:
            # One by one, as for a single clip: beside a longer prompt the words would be padded, and rounded, anew.
            texts = {"text": pipeline.encode_text([job.prompt])}
            if job.negative:
                texts["negative"] = pipeline.encode_negative([job.negative], [job.prompt])
        tensors = {
            f"{name}.{part}": getattr(text, part).cpu().contiguous()
            for name, text in texts.items()
            for part in ("context", "mask", "lengths")
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)
        return {"warnings": said} if said else {}

    def _make(self, pipeline: Pipeline, job: Job, beat: Callable[..., None]) -> dict[str, Any]:
        texts = _read_texts(self._ledger.context(job.text_key), pipeline.device)
        picture = None if job.image is None else read_image(job.image)
        draft = self._workplace / f"{job.key}.mp4"
        with _said() as said:
            clip, _ = write_clip(
                pipeline, job.prompt, job.settings, draft, decoder=job.decoder, progress=beat,
                negative=job.negative, picture=picture, texts=texts,
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
            "device": _device_title(pipeline.device),
            "threads": torch.get_num_threads(),
            **({"warnings": said} if said else {}),
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


def _read_texts(path: Path, device: torch.device) -> tuple[Text, Text | None]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise InputError(f"expected the encoded prompt at '{path}', found none: run the batch again") from error
    texts = [
        Text(*(tensors[f"{name}.{part}"] for part in ("context", "mask", "lengths"))) if f"{name}.context" in tensors
        else None
        for name in ("text", "negative")
    ]  # fmt: skip
    return texts[0], texts[1]


@contextmanager
def _said() -> Iterator[list[str]]:
    """Collect the texts of warnings, for the record of what they are about."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", UserWarning)
        yield said
    said += [str(one.message) for one in caught if issubclass(one.category, UserWarning)]


def _device_title(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
