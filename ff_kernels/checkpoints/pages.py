"""Pages of mapped files in the memory of the process, let go of as soon as what they hold has been read."""

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable

from torch import Tensor

from .reading import Contents

# Linux 5.4 and later; Python's mmap module does not name it.
_MADV_PAGEOUT = 21

# Called with tensors that are not read again for now.
LetGo = Callable[[Iterable[Tensor]], None]


def page_out(values: Tensor) -> None:
    """Page a mapped tensor, or a slice of one, out of memory: a file that is read once would end up there as a whole.

    The advice never changes contents; where the system does not know it the pages stay until memory is short.
    """
    if not sys.platform.startswith("linux"):
        return
    start = -(-values.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = values.data_ptr() + values.numel() * values.element_size() - start
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_PAGEOUT)


def keep_all(values: Iterable[Tensor]) -> None:
    """Let go of nothing: pages of a file that has room in memory are there for whoever opens it next."""


def let_go_of(contents: Contents) -> LetGo:
    """Return a function that pages out those of the tensors it is given which are pages of an opened file."""
    mapped = {
        tensor.data_ptr()
        for name, tensor in contents.tensors.items()
        if name not in contents.changed and tensor.device.type == "cpu"
    }

    def let_go(values: Iterable[Tensor]) -> None:
        for tensor in values:
            # What was made of the file's values would go to the swap instead.
            if tensor.device.type == "cpu" and tensor.data_ptr() in mapped:
                page_out(tensor)

    return let_go
