"""Every kernel against its formula: the error of both to float64, at sizes of the released networks or small ones.

A kernel passes if its error is at most twice that of the formula in the same dtype, plus one unit in the last place.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..ops import Coefficients, nearest_kernels, winograd_taps
from ..ops.registry import OPERATIONS, Implementation, Operation, backends_of, is_interpreting, refusals
from ..runtime.devices import DTYPES, computes_in
from .lines import FAILED, NOT_HERE, PASSED, Line
from .runner import timed

SEED = 20231113
Draw = Callable[..., Tensor]


def kernel_lines(device: torch.device, *, is_full_size: bool) -> Iterator[Line]:
    """Yield a line per operation, kernel and dtype.

    Args:
        device: where the kernels run.
        is_full_size: sizes of the released networks instead of small ones.
    """
    backends = [name for name in backends_of(device.type) if name != "eager"]
    if device.type == "cpu":
        # Triton's interpreter is for tests and has to be asked for.
        backends += ["triton"]
    for operation in OPERATIONS.values():
        for backend in backends:
            for name, dtype in DTYPES.items():
                yield _line(operation, backend, name, dtype, device, is_full_size)


def _line(
    operation: Operation, backend: str, name: str, dtype: torch.dtype, device: torch.device, is_full_size: bool
) -> Line:  # fmt: skip
    title = f"{operation.name}, {backend}, {name}"
    if backend == "triton" and device.type == "cpu" and not is_interpreting():
        return Line(title, NOT_HERE, "needs a card")
    if not computes_in(device, dtype):
        return Line(title, NOT_HERE, f"the device does not compute in {name}")
    args = arguments(operation.name, dtype, device, is_full_size)
    why = refusals(operation, backend, args)
    implementation = operation.implementations.get(backend)
    if implementation is None or why:
        return Line(title, NOT_HERE, f"runs by its formula: needs {'; '.join(why)}" if why else "runs by its formula")
    return _judged(title, operation, implementation, args, device)


def _judged(
    title: str, operation: Operation, implementation: Implementation, args: list[Any], device: torch.device
) -> Line:  # fmt: skip
    exact = _results(operation.formula(*(_exact(value) for value in args)))
    sides = [implementation.function, operation.formula]
    found, times = [], []
    for side in sides:
        side(*args)
        out, seconds = timed(lambda side=side: side(*args), device)
        found.append(_results(out))
        times.append(seconds)
    worst, errors = 0.0, [0.0, 0.0]
    for kernel, formula, true in zip(*found, exact, strict=True):
        both = [(out.cpu().double() - true).abs() for out in (kernel, formula)]
        bound = 2 * both[1].max() + _unit(true, kernel.dtype)
        worst = max(worst, (both[0] / bound).max().item())
        errors = [max(before, error.max().item()) for before, error in zip(errors, both, strict=True)]
        if kernel.dtype is not formula.dtype or kernel.shape != formula.shape or not kernel.isfinite().all():
            worst = float("inf")
    measured = f"error {errors[0]:.1e}, formula {errors[1]:.1e}; {times[0] * 1e3:.2f} ms, formula {times[1] * 1e3:.2f}"
    figures = {
        "error": errors[0], "formula_error": errors[1], "seconds": times[0], "formula_seconds": times[1],
    }  # fmt: skip
    return Line(title, PASSED if worst <= 1 else FAILED, measured, figures)


def _results(out: Any) -> list[Tensor]:
    return list(out) if isinstance(out, (tuple, list)) else [out]


def _exact(value: Any) -> Any:
    # Not every device has float64.
    return value.cpu().double() if isinstance(value, Tensor) else value


def _unit(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance of neighbouring numbers of a dtype at each value."""
    info = torch.finfo(dtype)
    # Triton's interpreter cuts bfloat16 results off instead of rounding them.
    units = 2 if dtype is torch.bfloat16 and is_interpreting() else 1
    return units * 2.0 ** exact.abs().clamp(min=info.tiny).log2().floor() * info.eps


def arguments(name: str, dtype: torch.dtype, device: torch.device, is_full_size: bool) -> list[Any]:
    """Return random arguments of an operation, the same every time.

    Args:
        name: of the operation.
        dtype: of activations and weights.
        device: where they are wanted.
        is_full_size: sizes of the released networks instead of small ones.
    """
    generator = torch.Generator(device).manual_seed(SEED)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, device=device) * scale).to(dtype)

    channels, side = (768, 32) if is_full_size else (32, 8)
    return _ARGUMENTS[name](draw, channels, side)


def _maps(draw: Draw, n: int, channels: int, side: int) -> Tensor:
    return draw(n, channels, side, side).contiguous(memory_format=torch.channels_last)


def _kernel(draw: Draw, outputs: int, inputs: int, *sides: int) -> Tensor:
    taps = 1
    for size in sides:
        taps *= size
    return draw(outputs, inputs, *sides, scale=(inputs * taps) ** -0.5)


def _group_norm_mod(draw: Draw, channels: int, side: int) -> list[Any]:
    return [_maps(draw, 4, channels, side), draw(2, 2 * channels), 8, False, True, 1e-5]


def _spatial_norm_act(draw: Draw, channels: int, side: int) -> list[Any]:
    x, latents = _maps(draw, 2, channels, side), draw(2, 4, side // 4, side // 4)
    sides = [value for _ in range(2) for value in (draw(channels, 4), draw(channels))]
    return [x, latents, *sides, draw(channels), draw(channels), 8, True, 1e-6]


def _linear(draw: Draw, channels: int, side: int) -> list[Any]:
    x = draw(2, side * side, channels)
    return [x, _kernel(draw, 2 * channels, channels), draw(2 * channels), draw(2, side * side, 2 * channels), True]


def _attend_over_time(draw: Draw, channels: int, side: int) -> list[Any]:
    return [*(draw(2, 15, side * side, channels) for _ in range(3)), max(1, channels // 64)]


def _residual_conv(draw: Draw, channels: int, side: int) -> list[Any]:
    x = _maps(draw, 2, channels, side)
    return [x, _kernel(draw, channels, channels, 3, 1), draw(channels), _maps(draw, 2, channels, side), [1, 0]]


def _winograd_conv(draw: Draw, channels: int, side: int) -> list[Any]:
    x, taps = _maps(draw, 2, channels, side), winograd_taps(_kernel(draw, channels, channels, 3, 3))
    return [x, taps, draw(channels), _maps(draw, 2, channels, side)]


def _nearest_conv(draw: Draw, channels: int, side: int) -> list[Any]:
    x, kernels = _maps(draw, 2, channels, side), nearest_kernels(_kernel(draw, channels, channels, 3, 3))
    return [x, kernels, draw(channels)]


def _sample_step(draw: Draw, channels: int, side: int) -> list[Any]:
    x = [draw(15, 4, 2 * side, 2 * side).float() for _ in range(2)]
    rows = torch.tensor([*Coefficients(0.6, 0.8, 0.3, 0.7, 0.1)], device=x[0].device)
    return [draw(30, 4, 2 * side, 2 * side), *x, rows, [8.5, -7.5], "eps", "range", 0.98]


_ARGUMENTS = {
    "group_norm_mod": _group_norm_mod,
    "spatial_norm_act": _spatial_norm_act,
    "linear": _linear,
    "attend_over_time": _attend_over_time,
    "residual_conv": _residual_conv,
    "winograd_conv": _winograd_conv,
    "nearest_conv": _nearest_conv,
    "sample_step": _sample_step,
}
