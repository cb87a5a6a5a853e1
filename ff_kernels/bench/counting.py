"""The full-size workloads on the meta device: what each side costs, beside the targets, and the roofline of a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import InputError
from .known_values import KnownValues
from .precision import AUTOCAST
from .recorder import Recording, record
from .workloads import WORKLOADS, Workload, make_inputs, make_network, make_ready, our_call, prepare, reference_call

_META = torch.device("meta")
# Reachable FLOP/s (16 bit) and bytes/s of devices by a part of their name; assumed of the vendor's figures: 0.8
# of the products and 0.9 of the bandwidth on H200 and H100, all of both on a 4090.
PEAKS = {"H200": (790e12, 4.3e12), "H100": (790e12, 3.0e12), "4090": (165e12, 1.0e12)}


@dataclass(frozen=True)
class Target:
    """A figure of one workload that must not be exceeded.

    Attributes:
        workload: name of the workload.
        figure: "launches", "flops", "bytes", "parameter_bytes" or "peak_bytes"; flops and bytes are per step, or per
            decoded frame.
        release: what the release's formulation needs, counted from the authors' own code.
        limit: what ours may need.
    """

    workload: str
    figure: str
    release: float
    limit: float


TARGETS = (
    Target("keyframes-512", "bytes", 393.5e9, 115e9),
    Target("keyframes-512", "launches", 5402, 1600),
    Target("keyframes-512", "parameter_bytes", 8.29e9, 4.9e9),
    Target("interpolation-512", "flops", 31.86e12, 27.7e12),
    Target("interpolation-512", "bytes", 269.8e9, 95e9),
    Target("decode-512", "bytes", 67.5e9, 12e9),
    Target("decode-512", "peak_bytes", 10.8e9, 0.9e9),
)
_SHOWN = (
    ("launches", "launches", 1, ",.0f"),
    ("flops", "TFLOP", 1e12, ".2f"),
    ("bytes", "GB moved", 1e9, ".1f"),
    ("parameter_bytes", "GB of parameters read", 1e9, ".2f"),
    ("peak_bytes", "GB peak of live tensors", 1e9, ".2f"),
)


def record_reference(workload: Workload) -> Recording:
    """Count one call of the release's formulation under CUDA autocast with float16 weights."""
    network = make_network(workload, _META)
    return record(reference_call(workload, network, make_inputs(workload, _META), AUTOCAST), network)


def record_ours(workload: Workload) -> Recording:
    """Count one call of our formulation with float16 weights, after ``prepare``."""
    network = make_ready(make_network(workload, _META))
    with torch.no_grad(), KnownValues():
        inputs = make_inputs(workload, _META)
        conditions = prepare(workload, network, inputs)
    return record(our_call(workload, network, inputs, conditions), network)


def figure(recording: Recording, name: str, workload: Workload) -> float:
    """Return one figure of a recording: flops and bytes of decoding are per frame."""
    share = workload.frames if workload.stage == "decode" and name in ("flops", "bytes") else 1
    return getattr(recording, name) / share


def roofline_seconds(recording: Recording, device_name: str) -> float | None:
    """Return the time below which a device cannot run what was recorded; None for a device of unknown peaks."""
    for part, peaks in PEAKS.items():
        if part in device_name:
            return recording.seconds(*peaks)
    return None


def full_size(names: Sequence[str] | None) -> list[str]:
    """Return the full-size workloads among ``names``, or those that have targets.

    Raises:
        InputError: for a name that is not a full-size workload.
    """
    for name in names or ():
        if name not in WORKLOADS or not WORKLOADS[name].is_full_size:
            full = ", ".join(workload.name for workload in WORKLOADS.values() if workload.is_full_size)
            raise InputError(f"expected a workload of full size to count, got '{name}': choose from {full}")
    return list(names or dict.fromkeys(target.workload for target in TARGETS))


def recorded(name: str) -> list[dict[str, object]]:
    """Return a row per figure of a full-size workload: release, ours, target (None where there is none)."""
    workload = WORKLOADS[name]
    release, ours = record_reference(workload), record_ours(workload)
    limits = {target.figure: target.limit for target in TARGETS if target.workload == name}
    rows: list[dict[str, object]] = [
        {
            "workload": name,
            "figure": key,
            "release": figure(release, key, workload),
            "ours": figure(ours, key, workload),
            "target": limits.get(key),
        }
        for key, _, _, _ in _SHOWN
    ]
    for device in ("H200", "4090"):
        times = [roofline_seconds(recording, device) for recording in (release, ours)]
        rows.append({"workload": name, "figure": f"{device}_seconds", "release": times[0], "ours": times[1]})
    return rows


def table(rows: list[dict[str, object]]) -> list[str]:
    """Return the lines of a table of ``recorded`` rows."""
    lines = [f"{'workload':20} {'figure':26} {'release':>10} {'ours':>10} {'target':>10}"]
    shown = {key: (title, unit, digits) for key, title, unit, digits in _SHOWN}
    for row in rows:
        key = str(row["figure"])
        title, unit, digits = shown.get(key, (f"ms roofline {key.removesuffix('_seconds')}", 1e-3, ".1f"))
        if WORKLOADS[str(row["workload"])].stage == "decode" and key in ("flops", "bytes"):
            title += " per frame"
        release, ours = (format(row[side] / unit, digits) for side in ("release", "ours"))
        target = row.get("target")
        aim = "" if target is None else f"<= {format(target / unit, digits)}"
        lines.append(f"{row['workload']:20} {title:26} {release:>10} {ours:>10} {aim:>10}")
    return lines
