"""Main memory: what a run may still take of it, and the part that is pinned so that copies run beside computation."""

import ctypes
import mmap
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

# Pinned memory cannot be paged out: what else runs on the machine needs the rest.
PINNED_SHARE = 0.4
# Free memory that no plan touches: the interpreter, libraries, decoded frames.
KEPT_FREE = 2 << 30


def free_ram(root: Path = Path("/")) -> int | None:
    """Return the bytes of main memory that this process can still take; None where nobody knows.

    The least of what the machine has left and what every control group around this process leaves: a container is
    ended at its own limit, whatever the machine has.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    free = [*_of_machine(root), *_of_groups(root)]
    return max(0, min(free)) if free else None


def total_ram() -> int | None:
    """Return the bytes of main memory that the machine has; None where nobody knows."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _windows_memory()[0] if sys.platform == "win32" else None


def _of_machine(root: Path) -> Iterator[int]:
    listing = root / "proc" / "meminfo"
    if listing.exists():
        for line in _text(listing).splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    elif sys.platform == "win32":
        yield _windows_memory()[1]
    else:
        total = total_ram()
        # Macs page out what rests: half is what programs are let have without a fight.
        yield from [] if total is None else [total // 2]


class _MemoryStatus(ctypes.Structure):
    _fields_ = (
        ("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("total", ctypes.c_uint64), ("free", ctypes.c_uint64),
        ("total_page", ctypes.c_uint64), ("free_page", ctypes.c_uint64), ("total_virtual", ctypes.c_uint64),
        ("free_virtual", ctypes.c_uint64), ("extended", ctypes.c_uint64),
    )  # fmt: skip


def _windows_memory() -> tuple[int, int]:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status.total, status.free


def _of_groups(root: Path) -> Iterator[int]:
    """Yield what the control groups of both versions leave, from the one of this process up to the outermost."""
    listing = root / "proc" / "self" / "cgroup"
    if not listing.exists():
        return
    base = root / "sys" / "fs" / "cgroup"
    for line in _text(listing).splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            top, limit, used, idle = base, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, idle = base / "memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            folder = top.joinpath(*parts[:depth])
            least, taken = _number(folder / limit), _number(folder / used)
            if least is not None and taken is not None:
                # Pages of files that nobody uses are given up before anything is ended.
                yield least - taken + _stat(folder / "memory.stat", idle)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _stat(path: Path, name: str) -> int:
    rows = (line.split() for line in _text(path).splitlines())
    return next((int(row[1]) for row in rows if row[:1] == [name]), 0)


# Registers memory with the driver, and takes it back.
Register, Unregister = Callable[[int, int], None], Callable[[int], None]


class Pins:
    """Copies weights into pinned memory of exactly their size: torch's own rounds up to a power of two.

    Where the limit is reached or the driver refuses, which is said once, weights stay in ordinary memory, from which
    copies work too and are slower.

    Args:
        limit: bytes to pin at the most.
        register: registers an address and a size with the driver; raises RuntimeError where that is refused.
        unregister: undoes that.
    """

    def __init__(self, limit: int, register: Register, unregister: Unregister) -> None:
        self.limit, self.used = limit, 0
        self._register, self._unregister = register, unregister
        self._is_refused = False

    def hold(self, values: Tensor) -> Tensor:
        """Return the values in pinned memory, or as they are where there is no more of it."""
        size = values.numel() * values.element_size()
        if self._is_refused or not size:
            return values
        if self.used + size > self.limit:
            return self._refuse(values, f"{self.limit / 1e9:.1f} GB are the limit")
        memory = mmap.mmap(-1, size)
        out = torch.frombuffer(memory, dtype=values.dtype).as_strided(values.shape, _dense(values))
        try:
            self._register(out.data_ptr(), size)
        except RuntimeError as error:
            return self._refuse(values, str(error).strip().splitlines()[0])
        out.copy_(values)
        self.used += size
        weakref.finalize(out.untyped_storage(), self._leave, out.data_ptr(), size)
        return out

    def _leave(self, address: int, size: int) -> None:
        self._unregister(address)
        self.used -= size

    def _refuse(self, values: Tensor, why: str) -> Tensor:
        self._is_refused = True
        warnings.warn(
            f"pinned memory was refused ({why}): weights wait in ordinary memory, from which they come slower",
            stacklevel=4,
        )
        return values


def _dense(values: Tensor) -> tuple[int, ...]:
    """Return strides without holes in the order of dimensions that the values have."""
    return torch.empty_like(values, device="meta").stride()


def pins_for(device: torch.device) -> Pins | None:
    """Return pinned memory for a device; None for one that copies as fast without."""
    if device.type != "cuda":
        return None
    runtime = torch.cuda.cudart()

    def register(address: int, size: int) -> None:
        code = int(runtime.cudaHostRegister(address, size, 0))
        if code:
            raise RuntimeError(f"the driver answered {code}")

    total, free = total_ram(), free_ram()
    limits = [int(total * PINNED_SHARE)] if total else []
    limits += [free - KEPT_FREE] if free is not None else []
    return Pins(max(0, min(limits, default=0)), register, runtime.cudaHostUnregister)
