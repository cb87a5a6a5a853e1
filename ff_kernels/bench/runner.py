"""Run a workload in both formulations in turn, compare the outputs, and report medians, ratio and peak memory."""

import csv
import io
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..errors import FusionFramesError, InputError
from ..runtime.devices import (
    ORDER,
    allocated_bytes,
    choose_device,
    name_of,
    peak_bytes,
    restart_peak,
    synchronize,
)
from ..runtime.graph import CudaCapture, Graphs
from .counting import record_ours, record_reference, roofline_seconds
from .memory import peak_on_cpu
from .precision import AUTOCAST, PLAIN
from .workloads import WORKLOADS, Workload, make_inputs, make_network, make_ready, our_call, prepare, reference_call

REPEATS = 3
# Relative L2 difference of the two outputs: rounding in float32; in 16 bit two different orders of rounding.
LIMITS = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}


class DisagreementError(FusionFramesError):
    """The two formulations of a workload gave different results, so that their times must not be compared."""


@dataclass(frozen=True)
class Result:
    """One measured workload.

    Attributes:
        workload: its name.
        ours_seconds: median of one call.
        reference_seconds: median of one call of the release's formulation.
        ratio: reference over ours.
        ours_peak_mb: 10^6 bytes in use beyond weights and tables at the peak of a call; None where not known.
        reference_peak_mb: as ``ours_peak_mb``.
        device: name of the processor, with its threads, or of the GPU.
        versions: of what was measured and of what it ran on.
        prepare_seconds: what ours does once per run of 50 steps; None for decoding and text.
        difference: relative L2 difference of the outputs.
        repeats: calls behind each median.
        roofline_share: time that the device cannot go below over ours; None for a CPU or a device of unknown peaks.
        reference_roofline_share: as ``roofline_share``.
    """

    workload: str
    ours_seconds: float
    reference_seconds: float
    ratio: float
    ours_peak_mb: float | None
    reference_peak_mb: float | None
    device: str
    versions: dict[str, str]
    prepare_seconds: float | None
    difference: float
    repeats: int
    roofline_share: float | None = None
    reference_roofline_share: float | None = None


def choose(names: Sequence[str] | None) -> list[Workload]:
    """Return the workloads of these names; default: those that fit the machine.

    Raises:
        InputError: for a name that does not exist, or one that needs a card where there is none.
    """
    has_gpu = choose_device().type != "cpu"
    if not names:
        return [workload for workload in WORKLOADS.values() if workload.is_timed and workload.is_full_size == has_gpu]
    for name in names:
        if name not in WORKLOADS:
            raise InputError(f"expected a workload, got '{name}': choose from {', '.join(WORKLOADS)}")
        if WORKLOADS[name].is_full_size and not has_gpu:
            raise InputError(
                f"workload '{name}' has the released sizes and needs a card ({', '.join(ORDER[:-1])}), and torch found "
                "none: run it on a machine with one, take one that ends in -cpu or -small, or only count its work",
                setting="counts",
            )
    return [WORKLOADS[name] for name in names]


@torch.inference_mode()
def measure(
    workload: Workload, repeats: int = REPEATS, *, uses_graphs: bool = True, ours: nn.Module | None = None
) -> Result:  # fmt: skip
    """Run both sides of a workload in turn, after one call of each to warm up.

    Args:
        workload: what to run.
        repeats: calls behind each median.
        uses_graphs: on a CUDA device, replay our sampling step as the pipeline does.
        ours: our network where it is made already, ready on the device.

    Raises:
        DisagreementError: if the outputs of the two sides differ by more than rounding explains.
    """
    device = choose_device() if workload.is_full_size else torch.device("cpu")
    device = device if ours is None else next(ours.parameters()).device
    peaks = [None, None] if workload.is_full_size else _peaks_on_cpu(workload)
    inputs = make_inputs(workload, device)
    precision = AUTOCAST if workload.is_full_size else PLAIN
    ours = make_ready(make_network(workload, device)) if ours is None else ours
    if workload.is_full_size:
        # Handles and workspaces of the libraries are made in the first product, which is no part of the work.
        prepare(workload, ours, inputs)
    conditions, prepare_seconds = timed(lambda: prepare(workload, ours, inputs), device)
    # Nothing of the text encoder is folded, and two of it would ask for 35 GB.
    theirs = ours if workload.stage == "text" else make_network(workload, device)
    reference = reference_call(workload, theirs, inputs, precision)
    launched = our_call(workload, ours, inputs, conditions)
    difference = _compare(workload, launched(), reference())
    if workload.is_full_size:
        # Memory that a graph holds is its own, so that the peak of a replay would read as nothing.
        peaks = [peak_on(call, device) for call in (launched, reference)]
    graphs = Graphs(CudaCapture(device)) if uses_graphs and workload.has_steps and device.type == "cuda" else None
    calls = (our_call(workload, ours, inputs, conditions, graphs), reference)
    if graphs is not None:
        _compare(workload, calls[0](), reference())
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for call, taken in zip(calls, times, strict=True):
            taken.append(timed(call, device)[1])
    medians = [statistics.median(taken) for taken in times]
    return Result(
        workload.name, *medians, medians[1] / medians[0], *(None if peak is None else peak / 1e6 for peak in peaks),
        name_of(device), versions(), None if conditions is None else prepare_seconds, difference, repeats,
        *_shares(workload, medians, device),
    )  # fmt: skip


def _compare(workload: Workload, ours: Tensor, reference: Tensor) -> float:
    ours, reference = ours.cpu().double(), reference.cpu().double()
    difference = ((ours - reference).norm() / reference.norm()).item()
    limit = LIMITS[workload.dtype]
    if not difference <= limit:
        raise DisagreementError(
            f"the outputs of workload '{workload.name}' differ by {difference:.1e} from the release's formulation, "
            f"over the limit of {limit:.0e}: run 'fusionframes verify' on the reference cases to find what broke"
        )
    return difference


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Return the result of a call and the seconds until the device has done it."""
    synchronize(device)
    start = time.perf_counter()
    out = call()
    synchronize(device)
    return out, time.perf_counter() - start


def _peaks_on_cpu(workload: Workload) -> list[int | None]:
    return [peak_on_cpu(workload, is_ours, torch.get_num_threads()) for is_ours in (True, False)]


def peak_on(call: Callable[[], Tensor], device: torch.device) -> int | None:
    """Return the bytes that a call takes on a card beyond what is there; None where nobody counts."""
    synchronize(device)
    restart_peak(device)
    before = allocated_bytes(device)
    call()
    synchronize(device)
    peak = peak_bytes(device)
    return None if before is None or peak is None else peak - before


def _shares(workload: Workload, medians: list[float], device: torch.device) -> list[float | None]:
    if device.type == "cpu":
        return [None, None]
    name = name_of(device)
    # In inference mode some operations of the reference take another way, which is not the one that is counted.
    with torch.inference_mode(mode=False):
        bounds = [roofline_seconds(count(workload), name) for count in (record_ours, record_reference)]
    return [None if bound is None else bound / median for bound, median in zip(bounds, medians, strict=True)]


def versions() -> dict[str, str]:
    """Return the versions that a time depends on."""
    found = {"fusionframes": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def append_history(result: Result, path: Path) -> None:
    """Append a result as one line of CSV; the first line of a new file names the columns."""
    row = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(result)}
    row["versions"] = " ".join(f"{name}={version}" for name, version in result.versions.items())
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    if not path.exists() or path.stat().st_size == 0:
        writer.writeheader()
    writer.writerow(row)
    # One write, so that runs that end together do not mix their lines.
    with path.open("a", encoding="utf-8") as file:
        file.write(text.getvalue())


def describe(result: Result, workload: Workload) -> str:
    """Return a result as lines for people."""
    peaks = (result.ours_peak_mb, result.reference_peak_mb)
    ours, reference = ("unknown" if peak is None else f"{peak:,.0f} MB" for peak in peaks)
    lines = [
        f"{result.workload}: {workload.unit}",
        f"  release {result.reference_seconds:.3f} s, ours {result.ours_seconds:.3f} s, ratio {result.ratio:.2f} "
        f"(medians of {result.repeats}, outputs differ by {result.difference:.1e})",
        f"  peak memory beyond weights and tables: release {reference}, ours {ours}",
    ]
    if result.prepare_seconds is not None:
        lines.append(f"  prepare, once per run of 50 steps: {result.prepare_seconds:.2f} s")
    if result.roofline_share is not None:
        lines.append(
            f"  share of the roofline: release {result.reference_roofline_share:.0%}, ours {result.roofline_share:.0%}"
        )
    return "\n".join([*lines, f"  {result.device}"])
