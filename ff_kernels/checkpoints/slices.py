"""Where in a safetensors file each tensor lies, so that a weight is read straight to the place where it will live."""

import json
import os
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..ops.rounding import Rounded
from .reading import INDEX_SUFFIX, METADATA_KEY, plainly_named, shard_names

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8}


@dataclass(frozen=True)
class OpenedFile:
    """A file that is read piece by piece while a network runs, and must not change meanwhile."""

    path: Path
    _stamp: tuple[int, int]
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    @classmethod
    def of(cls, path: Path) -> "OpenedFile":
        """Remember a file as it is now."""
        state = path.stat()
        return cls(path, (state.st_size, state.st_mtime_ns))

    def read_into(self, out: memoryview, start: int) -> None:
        """Fill ``out`` with the bytes from ``start`` on.

        Raises:
            CheckpointError: if the file has gone, has changed, or ends before.
        """
        try:
            with self._lock, self.path.open("rb", buffering=0) as file:
                state = os.fstat(file.fileno())
                if (state.st_size, state.st_mtime_ns) != self._stamp:
                    raise CheckpointError(
                        f"expected '{self.path}' to stay as it was while it is read, found it changed: run again when "
                        "nothing writes to it"
                    )
                file.seek(start)
                done = 0
                while done < len(out):
                    count = file.readinto(out[done:])
                    if not count:
                        raise CheckpointError(
                            f"expected {len(out):,} bytes at {start:,} in '{self.path}', got {done:,}: download it "
                            "again"
                        )
                    done += count
        except OSError as error:
            raise CheckpointError(
                f"expected to read '{self.path}' while the network runs, got {error.strerror or error}: check the "
                "drive it lies on"
            ) from error


@dataclass(frozen=True)
class FileSlice:
    """A tensor in a file.

    Attributes:
        file: the file.
        start: first byte.
        shape: of the tensor.
        dtype: as stored.
    """

    file: OpenedFile
    start: int
    shape: torch.Size
    dtype: torch.dtype

    def write_into(self, out: Tensor) -> None:
        """Read the values into ``out``, which has the shape and may have another dtype and device.

        Raises:
            CheckpointError: see ``OpenedFile.read_into``.
        """
        if out.device.type == "cpu" and out.dtype == self.dtype and out.is_contiguous():
            self._read(out)
            return
        values = torch.empty(self.shape, dtype=self.dtype)
        self._read(values)
        out.copy_(values)

    def _read(self, out: Tensor) -> None:
        self.file.read_into(memoryview(out.detach().view(-1).view(torch.uint8).numpy()), self.start)


@dataclass(frozen=True)
class RoundedSlice:
    """A weight in 8 bit in a file.

    Attributes:
        data: the whole numbers.
        scale: float32, multiplies them.
        dtype: in which the weight is wanted.
    """

    data: FileSlice
    scale: Tensor
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.data.shape

    def write_into(self, out: Tensor) -> None:
        """Read and widen the weight into ``out``; see ``FileSlice.write_into``."""
        values = torch.empty(self.shape, dtype=torch.int8)
        self.data.write_into(values)
        Rounded(values, self.scale, out.dtype).write_into(out)


def slices_of(path: Path) -> dict[str, FileSlice]:
    """Return the tensors of a safetensors file whose dtype is floating or of 8 bits, by name.

    Raises:
        CheckpointError: if the header does not fit the file.
    """
    file = OpenedFile.of(path)
    try:
        with path.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file._stamp[0]:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        return {
            name: FileSlice(
                file, 8 + length + entry["data_offsets"][0], torch.Size(entry["shape"]), _DTYPES[entry["dtype"]]
            )
            for name, entry in header.items()
            if entry["dtype"] in _DTYPES
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(
            f"expected a header that says where tensors lie in '{path}', got a damaged one ({error}): download it again"
        ) from error


def slices_beside(path: Path) -> dict[str, FileSlice]:
    """Return where the tensors of a weights file or an index of shards lie, by the names of ``read_contents``.

    What lies in no safetensors file is left out.

    Raises:
        CheckpointError: see ``slices_of`` and ``shard_names``.
    """
    is_index = path.name.endswith(INDEX_SUFFIX)
    files = sorted({path.parent / name for name in shard_names(path).values()}) if is_index else [path]
    found: dict[str, FileSlice] = {}
    for file in files:
        if file.suffix.lower() == ".safetensors":
            found.update(plainly_named(slices_of(file)))
    found.pop(METADATA_KEY, None)
    return found
