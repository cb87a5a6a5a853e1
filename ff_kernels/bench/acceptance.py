"""One command for whoever has a card: does everything run on it as it should, how fast, and in what memory.

Kernels against their formulas, recorded steps against launched ones, a step of each network and decoding against the
release's formulation, weights that pass through and weights in 8 bit against resident ones. Weights are random and made
on the device, so nothing has to be downloaded.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.folding import Target
from ..errors import DeviceError, FusionFramesError
from ..ops.rounding import round_weights
from ..pipeline.needs import Batch, Need, unet_need
from ..runtime.devices import empty_cache, free_bytes, name_of
from ..runtime.graph import CudaCapture, Graphs
from ..runtime.host import pins_for
from ..runtime.placing import blocks_of, place
from ..runtime.plan import Budget, Plan, plan_network, size_of
from .kernel_checks import kernel_lines
from .lines import FAILED, NOT_HERE, PASSED, Line
from .runner import REPEATS, measure, peak_on, timed, versions
from .workloads import STEPS, WORKLOADS, Inputs, Workload, make_inputs, make_network, make_ready, our_call, prepare

# Relative L2 difference: of a replayed or streamed step, which computes the same in the same order; of one in 8 bit.
SAME, ROUNDED = 1e-3, 5e-2
# More than the plan said, of which torch's allocator and the vendor's workspaces are the reason.
PEAK_MARGIN = 1.1
# What a line fails of; a card out of memory is one of torch's.
_ERRORS = (FusionFramesError, RuntimeError, MemoryError)
CARD, PROCESSOR = ("keyframes-512", "interpolation-512", "decode-512"), (
    "keyframes-cpu", "interpolation-cpu", "decode-cpu",
)  # fmt: skip


def told(device: torch.device, seconds: float) -> dict[str, Any]:
    """Return what a table of lines is worth nothing without."""
    return {"device": name_of(device), "versions": versions(), "seconds": seconds}


def acceptance_lines(
    device: torch.device, *, vram: int | None = None, names: tuple[str, ...] | None = None, repeats: int = REPEATS
) -> Iterator[Line]:  # fmt: skip
    """Check everything and yield a line each.

    Args:
        device: a card, or the processor, which gets small sizes.
        vram: bytes that a step with streamed weights may fill; default: room for half of the weights.
        names: workloads of steps and decoding; default: those of the device.
        repeats: calls behind each median.
    """
    has_card = device.type != "cpu"
    yield from kernel_lines(device, is_full_size=has_card)
    workloads = [WORKLOADS[name] for name in names or (CARD if has_card else PROCESSOR)]
    for workload in workloads:
        yield _guarded(f"{workload.name}: against the release's formulation", lambda w=workload: _step(w, repeats))
        empty_cache(device)
    for workload in workloads:
        if workload.stage != "decode":
            try:
                yield from _memory_lines(workload, device, vram, repeats)
            except _ERRORS as error:
                yield _failure(f"{workload.name}: resident", error)
            empty_cache(device)


def _guarded(check: str, make: Callable[[], Line]) -> Line:
    try:
        return make()
    except _ERRORS as error:
        return _failure(check, error)


def _failure(check: str, error: BaseException) -> Line:
    said = str(error).strip().splitlines() or [type(error).__name__]
    return Line(check, FAILED, said[0][:300])


def _step(workload: Workload, repeats: int) -> Line:
    result = measure(workload, repeats)
    is_slower = workload.is_full_size and result.ratio < 1
    peaks = [
        None if peak is None else size_of(int(peak * 1e6)) for peak in (result.ours_peak_mb, result.reference_peak_mb)
    ]
    measured = (
        f"{result.ours_seconds * 1e3:.1f} ms, release {result.reference_seconds * 1e3:.1f} ms, "
        f"ratio {result.ratio:.2f}; beside weights "
        f"{peaks[0] or 'unknown'}, release {peaks[1] or 'unknown'}; outputs differ by {result.difference:.1e}"
    )
    if result.roofline_share is not None:
        measured += f"; {result.roofline_share:.0%} of the roofline, release {result.reference_roofline_share:.0%}"
    check = f"{workload.name}: against the release's formulation"
    return Line(check, FAILED if is_slower else PASSED, measured, vars(result))


@dataclass(frozen=True)
class _Resident:
    """A step whose weights all stay: what the others are held against."""

    workload: Workload
    inputs: Inputs
    out: Tensor
    seconds: float

    def line(self, check: str, out: Tensor, seconds: float, limit: float, more: str = "", **figures: Any) -> Line:
        """Compare another way to run the step; ``limit`` is of the relative difference."""
        difference = ((out.double() - self.out.double()).norm() / self.out.double().norm()).item()
        measured = (
            f"{seconds * 1e3:.1f} ms, resident {self.seconds * 1e3:.1f} ms, outputs differ by {difference:.1e}{more}"
        )
        told = {"seconds": seconds, "resident_seconds": self.seconds, "difference": difference, **figures}
        return Line(check, PASSED if difference <= limit else FAILED, measured, told)


@torch.inference_mode()
def _memory_lines(workload: Workload, device: torch.device, vram: int | None, repeats: int) -> Iterator[Line]:
    """Compare recorded, streamed and rounded steps of one network with a resident one."""
    network, recording, resident = _resident(workload, device, repeats)
    yield recording
    # What is there once is there: nothing of the resident weights may count for the streamed ones.
    network.to("cpu")
    empty_cache(device)
    need = _need(workload, network, device)
    check = f"{workload.name}: streamed against resident"

    def streamed() -> Line:
        plan = _plan(network, workload, need, vram, device)
        out, taken, peak = _placed(resident, network, plan, device, repeats)
        more = f"; {size_of(plan.passing)} streamed per step from {plan.waiting}, planned {size_of(plan.peak)}"
        more += "" if peak is None else f", counted {size_of(peak)}"
        line = resident.line(check, out, taken, SAME, more, planned=plan.peak, counted=peak)
        return line if peak is None or peak <= PEAK_MARGIN * plan.peak else replace(line, verdict=FAILED)

    yield _guarded(check, streamed)
    if workload.stage == "keyframes":
        yield _guarded(
            f"{workload.name}: weights in 8 bit against 16", lambda: _rounded(resident, need, device, repeats)
        )


def _resident(workload: Workload, device: torch.device, repeats: int) -> tuple[nn.Module, Line, _Resident]:
    """Return a network on the device, how a recorded step of it fares, and the step itself."""
    inputs = make_inputs(workload, device)
    network = make_ready(make_network(workload, device))
    conditions = prepare(workload, network, inputs)
    call = our_call(workload, network, inputs, conditions)
    call()
    outs = [timed(call, device) for _ in range(repeats)]
    resident = _Resident(workload, inputs, outs[0][0], min(seconds for _, seconds in outs))
    check = f"{workload.name}: recorded and replayed"
    if device.type != "cuda":
        return network, Line(check, NOT_HERE, "needs a CUDA card"), resident

    def replayed() -> Line:
        with warnings.catch_warnings():
            # A recording that fails is a warning in a run, which goes on without it, and a failure here.
            warnings.simplefilter("error")
            replay = our_call(workload, network, inputs, conditions, Graphs(CudaCapture(device)))
            replay()
            return resident.line(check, *timed(replay, device), SAME)

    return network, _guarded(check, replayed), resident


def _rounded(resident: _Resident, need: Need, device: torch.device, repeats: int) -> Line:
    workload = resident.workload
    network = make_ready(make_network(workload, device))
    step = blocks_of(network, workload.dtype).step
    network.to("cpu")
    report = round_weights(network)
    plan = plan_network(blocks_of(network, workload.dtype), Budget(), **vars(need))
    out, taken, peak = _placed(resident, network, plan, device, repeats)
    more = f"; {report.phrase()}, {size_of(plan.resident)} of weights in place of {size_of(step)}"
    check = f"{workload.name}: weights in 8 bit against 16"
    return resident.line(check, out, taken, ROUNDED, more, resident=plan.resident, counted=peak)


def _need(workload: Workload, network: nn.Module, device: torch.device) -> Need:
    batch = Batch(1, 2, 2 * workload.frames, workload.size, STEPS)
    return unet_need(network, batch, Target(device, workload.dtype), True)


def _plan(network: nn.Module, workload: Workload, need: Need, vram: int | None, device: torch.device) -> Plan:
    blocks = blocks_of(network, workload.dtype)
    if vram is None:
        slots = 2 * max(blocks.sizes)
        vram = blocks.step // 2 + slots + need.tables + max(need.stacked, blocks.visited)
    free = free_bytes(device)
    if free is not None and vram > free:
        raise DeviceError(
            f"expected {size_of(vram)} free on the device, found {size_of(free)}: close what else uses it, or take less"
        )
    return plan_network(blocks, Budget(vram), **vars(need))


def _placed(
    resident: _Resident, network: nn.Module, plan: Plan, device: torch.device, repeats: int
) -> tuple[Tensor, float, int | None]:  # fmt: skip
    """Return what a step of a planned network gives, its seconds, and the bytes counted at the most."""
    workload, inputs = resident.workload, resident.inputs
    pins = pins_for(device) if plan.waiting == "memory" else None
    outs: list[tuple[Tensor, float]] = []

    def run() -> Tensor:
        running = place(network, plan, device, workload.dtype, hold=None if pins is None else pins.hold)
        with running:
            call = our_call(workload, network, inputs, prepare(workload, network, inputs))
            call()
            outs.extend(timed(call, device) for _ in range(repeats))
        return outs[-1][0]

    peak = peak_on(run, device)
    return outs[-1][0], min(seconds for _, seconds in outs), peak


def timed_lines(lines: Iterator[Line], show: Callable[[str], None]) -> tuple[list[Line], float]:
    """Collect lines, showing each as it comes; return them with the seconds that they took."""
    start, found = time.perf_counter(), []
    for line in lines:
        show(f"{line.verdict:8} {line.check}: {line.measured}")
        found.append(line)
    return found, time.perf_counter() - start
