"""A folder of weights as the set of files a pipeline needs, found by content and not by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InputError
from .detection import NAMES, WHERE, Kind, detect, is_lora, places
from .reading import INDEX_SUFFIX, SUFFIXES, Contents, read_contents, shard_names

TOKENIZER_NAME = "spiece.model"


@dataclass(frozen=True)
class ModelFiles:
    """The weights of one release.

    Attributes:
        folder: where they are.
        family: "1.0" or "1.1".
        files: stage (``Kind.stage``) to its opened file and what it is; nothing is read yet.
        tokenizer: SentencePiece model.
    """

    folder: Path
    family: str
    files: Mapping[str, tuple[Contents, Kind]]
    tokenizer: Path

    def require(self, stage: str) -> tuple[Contents, Kind]:
        """Return the file of a stage.

        Raises:
            CheckpointError: if the folder has none.
        """
        if stage not in self.files:
            raise CheckpointError(
                f"expected {NAMES[stage]} of release {self.family} in '{self.folder}', found none: put "
                f"{places(stage, self.family)} there"
            )
        return self.files[stage]

    def paths(self, stage: str) -> list[Path]:
        """Return the file of a stage, or its shards."""
        path = self.require(stage)[0].path
        if not path.name.endswith(INDEX_SUFFIX):
            return [path]
        return sorted({path.parent / name for name in shard_names(path).values()})


def _candidates(folder: Path) -> list[Path]:
    """List weights one and two levels down; shards are represented by their index, hidden files are left out."""
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))]
    found: list[Path] = []
    for place in places:
        files = sorted(p for p in place.iterdir() if p.is_file() and not p.name.startswith("."))
        indices = [p for p in files if p.name.endswith(INDEX_SUFFIX)]
        shards = {name for index in indices for name in shard_names(index).values()}
        # A repository may hold the same shards twice; safetensors is the safer copy.
        found += [p for p in indices if "safetensors" in p.name] or indices
        found += [p for p in files if p.suffix.lower() in SUFFIXES and p.name not in shards]
    return found


def _text_encoder(path: str | Path, overrides: Mapping[str, Any] | None) -> tuple[Contents, Kind]:
    contents = read_contents(path)
    kind = detect(contents, overrides)
    if kind.stage != "text_encoder":
        raise CheckpointError(
            f"expected {NAMES['text_encoder']} in '{path}', got {kind.title}: take {places('text_encoder')}"
        )
    return contents, kind


def find_models(
    folder: str | Path, overrides: Mapping[str, Any] | None = None, *, text_encoder: str | Path | None = None
) -> ModelFiles:
    """Open every weights file of a folder and sort them by what they are.

    Args:
        folder: holds a keyframe U-Net, a MoVQ, a text encoder with ``spiece.model`` and, for more than the lowest
            frame rate, an interpolation U-Net; names do not matter, subfolders are looked into once, LoRAs passed over.
        overrides: configuration that shapes cannot tell, such as ``head_dim``.
        text_encoder: its file, in place of one that the folder may hold.

    Raises:
        InputError: if the folder does not exist.
        CheckpointError: if a file is damaged, two files are of one stage, or the keyframe U-Net or tokenizer is
            missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"expected a folder of model weights, found no folder at '{folder}': check it", "folder")
    files: dict[str, tuple[Contents, Kind]] = {}
    if text_encoder is not None:
        files["text_encoder"] = _text_encoder(text_encoder, overrides)
    for path in _candidates(folder):
        contents = read_contents(path)
        if is_lora(contents.tensors):
            continue
        kind = detect(contents, overrides)
        if kind.stage == "text_encoder" and text_encoder is not None:
            continue
        if kind.stage in files:
            raise CheckpointError(
                f"expected one file with {NAMES[kind.stage]} in '{folder}', got '{files[kind.stage][0].path.name}' and "
                f"'{contents.path.name}': keep one of them there"
            )
        files[kind.stage] = (contents, kind)
    if "keyframe" not in files:
        raise CheckpointError(
            f"expected a keyframe U-Net in '{folder}', found none: put {WHERE['keyframe', '1.0']} or "
            f"{WHERE['keyframe', '1.1']} there"
        )
    family = files["keyframe"][1].family
    for stage in ("interpolation", "masked"):
        other = files.get(stage)
        if other is not None and other[1].family != family:
            raise CheckpointError(
                f"expected {NAMES[stage]} of release {family} beside the keyframe U-Net in '{folder}', got one of "
                f"release {other[1].family} ('{other[0].path.name}'): take {WHERE['interpolation', family]}"
            )
    tokenizers = sorted(folder.glob(TOKENIZER_NAME)) + sorted(folder.glob(f"*/{TOKENIZER_NAME}"))
    if not tokenizers:
        raise CheckpointError(
            f"expected {TOKENIZER_NAME} in '{folder}', found none: take it from huggingface.co/google/flan-ul2"
        )
    return ModelFiles(folder, family, files, tokenizers[0])
