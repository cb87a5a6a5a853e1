"""A step recorded once and replayed: a CUDA graph over fixed buffers.

A step of the full-size networks launches more than a thousand kernels, which cost a fast GPU more time on the host
than on the device (ops/EXACTNESS.md, "Recorded steps"). A graph launches them at once, but always on the same memory:
what changes from step to step is copied into buffers first. Random numbers are drawn outside, so that their order stays
that of the releases.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..errors import DeviceError

# Calls before recording: libraries pick their algorithms and kernels are compiled in them, which a graph may not do.
WARM_UPS = 2

Function = Callable[..., Tensor]


class Capture(Protocol):
    """Records one call of a function of nothing."""

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return what repeats the recorded work; its result is the same memory every time."""


class Graphs:
    """Makes functions that replay what they did the first time; one object per run, whose graphs share their memory.

    Args:
        capture: what records; ``CudaCapture`` on a CUDA device.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def replayed(self, function: Function) -> Function:
        """Return ``function`` of tensors as a replay; its result lives until the next call.

        The first call fixes shapes and dtypes. Whatever else the function reads must stay where it is in memory. Where
        recording fails, a warning says why and the function itself is called instead.
        """
        return _Replayed(function, self._capture)


class _Replayed:
    def __init__(self, function: Function, capture: Capture) -> None:
        self._function, self._capture = function, capture
        self._buffers: list[Tensor] | None = None
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, *values: Tensor) -> Tensor:
        if self._replay is None:
            self._record(values)
        self._check(values)
        # One launch for many small rows instead of one each.
        torch._foreach_copy_(self._buffers, list(values))
        return self._replay()

    def _record(self, values: Sequence[Tensor]) -> None:
        self._buffers = [value.clone() for value in values]
        run = partial(self._function, *self._buffers)
        try:
            self._replay = self._capture(run)
        except DeviceError as error:
            # A graph only saves time: a run that can do without one goes on.
            warnings.warn(f"{error}; this run goes on without graphs and is slower", stacklevel=3)
            self._replay = run

    def _check(self, values: Sequence[Tensor]) -> None:
        told, fixed = ([(tuple(t.shape), t.dtype) for t in tensors] for tensors in (values, self._buffers))
        if told != fixed:
            raise DeviceError(
                f"a recorded step expected tensors {fixed}, got {told}: record another step for these, or run without "
                "graphs"
            )


class CudaCapture:
    """Records CUDA graphs on one device; they share one pool of memory, since they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # torch's own capture stream is that of the first device of the process, and graphs that share memory want one.
        self._stream: torch.cuda.Stream | None = None
        self._pool: object | None = None

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Warm up on a stream of its own, record, and return the replay.

        Raises:
            DeviceError: if the work cannot be recorded.
        """
        with torch.cuda.device(self._device):
            try:
                # Where recording fails, torch may leave its capture stream the current one; this puts it back.
                with torch.cuda.stream(torch.cuda.current_stream()):
                    graph, out = self._record(function)
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                # Ending a failed recording raises a second error, which says less.
                cause = error.__context__ or error
                raise DeviceError(
                    f"the step could not be recorded as a CUDA graph ({cause}): switch graphs off"
                ) from error

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    def _record(self, function: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            out = function()
        return graph, out
