"""One network run in several ways: recorded, with weights that pass through, in 8 bit, each against a resident step."""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.rounding import round_weights
from ..pipeline.needs import Need
from ..runtime.budget import without_reserve
from ..runtime.devices import empty_cache, free_bytes
from ..runtime.graph import CudaCapture, Graphs
from ..runtime.host import pins_for
from ..runtime.placing import blocks_of, place
from ..runtime.plan import Budget, Plan, plan_network, size_of
from .lines import ERRORS, FAILED, NOT_HERE, PASSED, Line, NotHereError, guarded, of_error
from .released_text import encode_text
from .room import need_of, require_ram, weights_of
from .runner import LIMITS, peak_on, timed
from .workloads import Inputs, Workload, make_inputs, make_network, make_ready, our_call, prepare

# Relative L2 difference: of a replayed or streamed step, which computes the same in the same order; of one in 8 bit.
SAME, ROUNDED = 1e-3, 5e-2
# More than the plan said, of which torch's allocator and the vendor's workspaces are the reason.
PEAK_MARGIN = 1.1
RECORDED, STREAMED, EIGHT_BIT = "recorded and replayed", "streamed against resident", "weights in 8 bit against 16"
IN_PIECES = "in pieces against the release's formulation"


def ways_of(workload: Workload) -> list[str]:
    """Return the ways to run a workload besides resident: text is never recorded; one network is rounded for all."""
    if workload.stage == "decode":
        return []
    is_first = workload.stage == "keyframes" and workload.config.family == "1.0"
    return [*([RECORDED] if workload.has_steps else []), STREAMED, *([EIGHT_BIT] if is_first else [])]


@dataclass(frozen=True)
class _Resident:
    """A step whose weights all stay: what the others are held against."""

    workload: Workload
    inputs: Inputs
    out: Tensor
    seconds: float

    def line(
        self, check: str, out: Tensor, seconds: float, limit: float, more: str = "", beside: str = "resident",
        **figures: Any,
    ) -> Line:  # fmt: skip
        """Compare another way to run the step; ``limit`` is of the relative difference, ``beside`` names this one."""
        difference = ((out.double() - self.out.double()).norm() / self.out.double().norm()).item()
        measured = (
            f"{seconds * 1e3:.1f} ms, {beside} {self.seconds * 1e3:.1f} ms, outputs differ by {difference:.1e}{more}"
        )
        told = {"seconds": seconds, f"{beside}_seconds": self.seconds, "difference": difference, **figures}
        return Line(check, PASSED if difference <= limit else FAILED, measured, told)


@torch.inference_mode()
def placed_lines(
    workload: Workload, made: Callable[[], nn.Module], device: torch.device, vram: int | None, repeats: int
) -> Iterator[Line]:  # fmt: skip
    """Compare recorded, streamed and rounded steps of one network with a resident one.

    Args:
        workload: not of decoding.
        made: gives its network, ready on the device, and leaves it to this; may raise NotHereError.
        device: where it runs.
        vram: bytes that a step with streamed weights may fill; default: room for half of the weights.
        repeats: calls behind each time, of which the shortest counts.
    """
    checks = {way: f"{workload.name}: {way}" for way in ways_of(workload)}
    try:
        network = made()
        kept = _run_resident(workload, network, device, repeats)
    except ERRORS as error:
        yield from [of_error(check, error) for check in checks.values()]
        return
    if RECORDED in checks:
        yield guarded(checks[RECORDED], lambda: _recorded(checks[RECORDED], kept, network, device))
    try:
        require_ram(weights_of(workload) if device.type != "cpu" else 0, "weights that wait")
    except NotHereError as error:
        yield from [of_error(check, error) for way, check in checks.items() if way != RECORDED]
        return
    # What is there once is there: nothing of the resident weights may count for the streamed ones.
    network.to("cpu")
    empty_cache(device)
    need = need_of(workload, device)
    yield guarded(
        checks[STREAMED],
        lambda: _streamed(checks[STREAMED], kept, network, need, vram, device, repeats),
        is_planned=True,
    )
    if EIGHT_BIT in checks:
        yield guarded(checks[EIGHT_BIT], lambda: _rounded(checks[EIGHT_BIT], kept, need, device, repeats))


def _run_resident(workload: Workload, network: nn.Module, device: torch.device, repeats: int) -> _Resident:
    inputs = make_inputs(workload, device)
    call = our_call(workload, network, inputs, prepare(workload, network, inputs))
    call()
    outs = [timed(call, device) for _ in range(repeats)]
    return _Resident(workload, inputs, outs[0][0], min(seconds for _, seconds in outs))


def _recorded(check: str, kept: _Resident, network: nn.Module, device: torch.device) -> Line:
    if device.type != "cuda":
        return Line(check, NOT_HERE, "needs a CUDA card")
    with warnings.catch_warnings():
        # A recording that fails is a warning in a run, which goes on without it, and a failure here.
        warnings.simplefilter("error")
        conditions = prepare(kept.workload, network, kept.inputs)
        replay = our_call(kept.workload, network, kept.inputs, conditions, Graphs(CudaCapture(device)))
        replay()
        return kept.line(check, *timed(replay, device), SAME)


def _streamed(
    check: str, kept: _Resident, network: nn.Module, need: Need, vram: int | None, device: torch.device, repeats: int
) -> Line:  # fmt: skip
    plan = _plan(network, kept.workload, need, vram, device)
    out, taken, peak = _placed(kept, network, plan, device, repeats)
    line = kept.line(check, out, taken, SAME, _passing(plan, peak), planned=plan.peak, counted=peak)
    return _within(line, plan, peak)


def _passing(plan: Plan, peak: int | None) -> str:
    counted = "" if peak is None else f", counted {size_of(peak)}"
    waiting = "" if plan.waiting == "device" else f" from {plan.waiting}"
    return f"; {size_of(plan.passing)} streamed per step{waiting}, planned {size_of(plan.peak)}{counted}"


def _within(line: Line, plan: Plan, peak: int | None) -> Line:
    return line if peak is None or peak <= PEAK_MARGIN * plan.peak else replace(line, verdict=FAILED)


def _rounded(check: str, kept: _Resident, need: Need, device: torch.device, repeats: int) -> Line:
    workload = kept.workload
    network = make_ready(make_network(workload, device))
    step = blocks_of(network, workload.dtype).step
    network.to("cpu")
    report = round_weights(network)
    plan = plan_network(blocks_of(network, workload.dtype), Budget(), **vars(need))
    out, taken, peak = _placed(kept, network, plan, device, repeats)
    more = f"; {report.phrase()}, {size_of(plan.resident)} of weights in place of {size_of(step)}"
    return kept.line(check, out, taken, ROUNDED, more, resident=plan.resident, counted=peak)


@torch.inference_mode()
def pieces_line(workload: Workload, device: torch.device, vram: int | None, repeats: int) -> Line:
    """Run a text encoder that the device has no room for, its weights in main memory, against the release's order.

    The release's side brings one block after the other too, which its time includes.
    """
    require_ram(weights_of(workload), "weights that wait")
    network = make_network(workload, device, home=torch.device("cpu"))
    inputs = make_inputs(workload, device)

    def bring(block: nn.Module) -> nn.Module:
        return copy.deepcopy(block).to(device)

    release = _Resident(workload, inputs, *timed(lambda: encode_text(network, inputs.x, inputs.mask, bring), device))
    empty_cache(device)
    free = free_bytes(device)
    room = vram if vram is not None or free is None else without_reserve(free)
    plan = _plan(network, workload, need_of(workload, device), room, device)
    out, taken, peak = _placed(release, network, plan, device, repeats)
    check, limit = f"{workload.name}: {IN_PIECES}", LIMITS[workload.dtype]
    told = {"planned": plan.peak, "counted": peak, "passing": plan.passing}
    return _within(release.line(check, out, taken, limit, _passing(plan, peak), "release", **told), plan, peak)


def _plan(network: nn.Module, workload: Workload, need: Need, vram: int | None, device: torch.device) -> Plan:
    blocks = blocks_of(network, workload.dtype)
    if vram is None:
        slots = 2 * max(blocks.sizes)
        vram = blocks.step // 2 + slots + need.tables + max(need.stacked, blocks.visited)
    free = free_bytes(device)
    if free is not None and vram > free:
        raise NotHereError(f"expected {size_of(vram)} free on the device, found {size_of(free)}")
    return plan_network(blocks, Budget(vram), **vars(need))


def _placed(
    kept: _Resident, network: nn.Module, plan: Plan, device: torch.device, repeats: int
) -> tuple[Tensor, float, int | None]:  # fmt: skip
    """Return what a step of a planned network gives, its seconds, and the bytes counted at the most."""
    workload, inputs = kept.workload, kept.inputs
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
