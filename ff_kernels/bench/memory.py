"""Peak memory of one call of one side, beyond its weights and prepared tables.

On a CPU the side runs alone in a fresh process, because allocators keep what an earlier run freed and a peak of the
resident set cannot be told apart by caller. The kernel's high-water mark is set back right before the call, so that
neither the building of the weights nor ``prepare`` counts. Linux only; elsewhere the peak is unknown.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F

from .workloads import Workload, make_inputs, make_network, make_ready, our_call, prepare, reference_call

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_on_cpu(workload: Workload, is_ours: bool, threads: int) -> int | None:
    """Return the bytes that the resident set of a fresh process grows by in one call; None where not known."""
    if not _STATUS.exists():
        return None
    # A process that has loaded torch and done nothing with it is the parent of every fresh one.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_grow, workload, is_ours, threads).result()


def _grow(workload: Workload, is_ours: bool, threads: int) -> int:
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    with torch.inference_mode():
        network, inputs = make_network(workload, device), make_inputs(workload, device)
        if is_ours:
            network = make_ready(network)
            call = our_call(workload, network, inputs, prepare(workload, network, inputs))
        else:
            call = reference_call(workload, network, inputs)
        # Pages of the math libraries belong to neither side.
        F.conv2d(torch.ones(1, 8, 8, 8), torch.ones(8, 8, 3, 3))
        before = _resident("VmRSS")
        _reset_peak()
        call()
    return max(0, _resident("VmHWM") - before)


def _reset_peak() -> None:
    try:
        _RESET.write_text("5")
    except OSError:
        # Some containers forbid it; the mark of the building then hides the growth of a smaller call.
        return


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
