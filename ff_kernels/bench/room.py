"""Whether a machine has room for a workload, told from counts before anything is made."""

from collections.abc import Callable

import torch

from ..checkpoints.folding import Target
from ..pipeline.needs import Batch, Need, text_need, unet_need
from ..runtime.budget import RESERVE_BYTES
from ..runtime.devices import computes_in, free_bytes, name_of
from ..runtime.host import KEPT_FREE, free_ram
from ..runtime.plan import size_of
from .counting import record_ours, record_reference
from .lines import NotHereError
from .workloads import STEPS, Workload, make_network


def need_of(workload: Workload, device: torch.device) -> Need:
    """Return what our side needs beside its weights, as plans count it."""
    if workload.stage == "text":
        return text_need(workload.config, workload.frames, workload.dtype)
    branches = workload.branches
    batch = Batch(1, branches, branches * workload.frames, workload.size, STEPS)
    return unet_need(make_network(workload, torch.device("meta")), batch, Target(device, workload.dtype), True)


def weights_of(workload: Workload) -> int:
    """Return the bytes of the weights."""
    return sum(p.numel() for p in make_network(workload, torch.device("meta")).parameters()) * workload.dtype.itemsize


def both_sides(workload: Workload, device: torch.device) -> int:
    """Return the bytes that our side and the release's take when they run in turn, each with its weights."""
    # In inference mode some operations of the reference take another way, which is not the one that is counted.
    with torch.inference_mode(mode=False):
        peak = max(count(workload).peak_bytes for count in (record_ours, record_reference))
    copies = 1 if workload.stage == "text" else 2
    return copies * weights_of(workload) + _tables(workload, device) + peak


def resident(workload: Workload, device: torch.device) -> int:
    """Return the bytes that our side takes alone with all of its weights."""
    need = need_of(workload, device)
    return weights_of(workload) + need.tables + need.stacked


def _tables(workload: Workload, device: torch.device) -> int:
    return need_of(workload, device).tables if workload.has_steps else 0


def require_dtype(workload: Workload, device: torch.device) -> None:
    """Refuse a device that does not compute in the dtype of a workload.

    Raises:
        NotHereError: naming both.
    """
    if not computes_in(device, workload.dtype):
        dtype = str(workload.dtype).removeprefix("torch.")
        raise NotHereError(f"expected a device that computes in {dtype}, found {name_of(device)}")


def require_room(needs: Callable[[], int], device: torch.device, what: str) -> None:
    """Refuse what the device has no room for.

    Args:
        needs: counts bytes, without what libraries take; asked where the device says what it has free.
        device: where.
        what: that needs it.

    Raises:
        NotHereError: naming both sizes.
    """
    free = free_bytes(device)
    if free is not None and (needed := needs() + RESERVE_BYTES) > free:
        raise NotHereError(f"{what} expected {size_of(needed)} free on the device, found {size_of(free)}")


def require_ram(needed: int, what: str) -> None:
    """Refuse what main memory has no room for, of which some is left free.

    Raises:
        NotHereError: naming both sizes.
    """
    free, needed = free_ram(), needed + KEPT_FREE
    if free is not None and needed > free:
        raise NotHereError(f"{what} expected {size_of(needed)} free in main memory, found {size_of(free)}")
