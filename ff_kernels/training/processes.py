"""Several processes that train one model: each works through its share of a step's batches, gradients are added up."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InputError

# The others wait while the first encodes clips or draws a sheet.
_PATIENCE = timedelta(hours=6)


class Processes:
    """The processes of a training, of which this is one; by itself it is the only one.

    All of them call the methods in the same order, with tensors of the same shapes.

    Attributes:
        rank: number of this process, 0 .. ``count`` - 1. The first one writes and shows.
        count: of processes.
    """

    rank, count = 0, 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def share(self, batches: int) -> range:
        """Return which of the batches of a step are this process's.

        Raises:
            InputError: if the processes cannot have equally many.
        """
        if batches % self.count:
            raise InputError(
                f"expected accumulate as a multiple of the {self.count} processes, which share the batches of a step "
                f"evenly, got {batches}: take {self.count} or {2 * self.count}"
            )
        return range(self.rank, batches, self.count)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, which are on the device of the training, by their sums over all processes."""

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, which are on the device of the training, by those of the first process."""

    def any(self, wish: bool) -> bool:
        """Return whether any process wishes."""
        return wish

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first process go through alone, and then the others at once, which find what it left."""
        yield


class JoinedProcesses(Processes):
    """Processes that a launcher such as torchrun has started, joined by torch.distributed.

    Args:
        device: of this process; NCCL joins CUDA devices, Gloo all others.

    Raises:
        InputError: if torch cannot join processes on this machine.
    """

    def __init__(self, device: torch.device) -> None:
        backend = "nccl" if device.type == "cuda" else "gloo"
        if not dist.is_available() or not dist.is_backend_available(backend):
            raise InputError(
                f"expected a torch that joins processes by {backend}, found one without: start one process by itself"
            )
        dist.init_process_group(backend, timeout=_PATIENCE)
        self.rank, self.count, self.device = dist.get_rank(), dist.get_world_size(), device

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, which are on the device of the training, by their sums over all processes."""
        for tensor in tensors:
            dist.all_reduce(tensor)

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, which are on the device of the training, by those of the first process."""
        for tensor in tensors:
            dist.broadcast(tensor, 0)

    def any(self, wish: bool) -> bool:
        """Return whether any process wishes."""
        flag = torch.tensor(float(wish), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first process go through alone, and then the others at once, which find what it left."""
        if not self.is_first:
            self.any(False)
        yield
        if self.is_first:
            self.any(False)


@contextmanager
def join_processes(device: torch.device, variables: Mapping[str, str] = os.environ) -> Iterator[Processes]:
    """Give the processes that a launcher has started, joined for as long as the context lasts; or this one alone.

    Args:
        device: of this process.
        variables: of the environment, in which torchrun says how many there are.
    """
    if int(variables.get("WORLD_SIZE", "1")) < 2:
        yield Processes()
        return
    processes = JoinedProcesses(device)
    try:
        yield processes
    finally:
        dist.destroy_process_group()
