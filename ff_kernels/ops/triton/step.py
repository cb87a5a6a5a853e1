"""One step of the sampler in one kernel: guidance, estimate, clipping, posterior, noise."""

# ruff: noqa: ANN001, ANN202 (kernel code has Triton's types)

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..registry import Constraint, implements
from ..step import Coefficients, _sample_step
from ._runtime import FLOATS, NOT_EMPTY, ON_DEVICE, launch

MAX_BRANCHES = 4
# Elements of a tile of the kernel that runs over a whole sample, and of the one that does not have to.
SAMPLE_TILE = 8192
TILE = 1024
# 12 channels of 128 x 128: three frames of a gap at the largest size the networks were trained for, and more would
# keep one multiprocessor busy for long.
MAX_SAMPLE = 12 * 128 * 128

# Where each coefficient lies, so that the kernel cannot disagree with the formula about their order.
_SIGNAL, _NOISE, _X0_GAIN, _X_GAIN, _NOISE_GAIN = (
    tl.constexpr(Coefficients._fields.index(name)) for name in ("signal", "noise", "x0_gain", "x_gain", "noise_gain")
)
_NAN = tl.constexpr(float("nan"))
_INFINITY_BITS = tl.constexpr(0x7F800000)
_ONE_BITS = tl.constexpr(0x3F800000)


@triton.jit
def _branch(predictions, at, mask, weight):
    return weight * tl.load(predictions + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _estimate(
    predictions, x, coefficients, at, mask, stride, w0, w1, w2, w3, BRANCHES: tl.constexpr, PREDICTED: tl.constexpr
):
    """Return the x0 estimate at some elements; every operation rounds as in the formula, the last branch first."""
    # Branches lie ``stride`` elements apart, the elements of one sample and branch side by side.
    if BRANCHES == 1:
        mixed = _branch(predictions, at, mask, w0)
    elif BRANCHES == 2:
        mixed = _branch(predictions, at + stride, mask, w1) + _branch(predictions, at, mask, w0)
    elif BRANCHES == 3:
        mixed = _branch(predictions, at + 2 * stride, mask, w2) + _branch(predictions, at + stride, mask, w1)
        mixed += _branch(predictions, at, mask, w0)
    else:
        mixed = _branch(predictions, at + 3 * stride, mask, w3) + _branch(predictions, at + 2 * stride, mask, w2)
        mixed += _branch(predictions, at + stride, mask, w1)
        mixed += _branch(predictions, at, mask, w0)
    if PREDICTED != "denoised":
        noisy = tl.load(x + at, mask=mask, other=0.0)
        signal, level = tl.load(coefficients + _SIGNAL), tl.load(coefficients + _NOISE)
        mixed = signal * noisy - level * mixed if PREDICTED == "v" else tl.div_rn(noisy - level * mixed, signal)
    return mixed


@triton.jit
def _clipped(values, limit):
    """Clip to ``-limit..limit``; unlike minimum and maximum this lets a NaN through, as torch's clamp does."""
    return tl.where(values > limit, limit, tl.where(values < -limit, -limit, values))


@triton.jit
def _advance(denoised, x, noise, coefficients, following, at, mask, HAS_NOISE: tl.constexpr):
    """Store the next samples at some elements: posterior mean and noise."""
    x0_gain, x_gain = tl.load(coefficients + _X0_GAIN), tl.load(coefficients + _X_GAIN)
    result = x0_gain * denoised + x_gain * tl.load(x + at, mask=mask, other=0.0)
    if HAS_NOISE:
        result += tl.load(coefficients + _NOISE_GAIN) * tl.load(noise + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(following + at, result, mask=mask)


@triton.jit
def _step_kernel(
    x, predictions, noise, coefficients, following, denoised,  # [N * S], predictions [BRANCHES * N * S]
    size, w0, w1, w2, w3,
    BRANCHES: tl.constexpr, PREDICTED: tl.constexpr, THRESHOLDS: tl.constexpr, HAS_NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Step where the limit is known: every element by itself; ``size`` is that of all samples together."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    values = _estimate(predictions, x, coefficients, at, mask, size, w0, w1, w2, w3, BRANCHES, PREDICTED)
    if THRESHOLDS:
        values = _clipped(values, 1.0)
    tl.store(denoised + at, values, mask=mask)
    _advance(values, x, noise, coefficients, following, at, mask, HAS_NOISE)


@triton.jit
def _magnitudes(denoised, at, mask):
    """Return the bits of absolute values, which as integers order like the numbers; -1 outside the sample."""
    bits = tl.load(denoised + at, mask=mask, other=0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.where(mask, bits, -1)


@triton.jit
def _quantile_limit(denoised, start, S, highest, below, above, fraction, BLOCK: tl.constexpr):
    """Return the larger of 1 and the quantile between ranks ``below`` and ``above`` (from 0) of a sample's magnitudes.

    Halves the interval of bit patterns until one is left: exact, and no sorting. Nothing under 1 matters.
    """
    columns = tl.arange(0, BLOCK)
    low = _ONE_BITS + highest * 0
    high = tl.maximum(highest, low)
    while low < high:
        middle = low + (high - low) // 2
        counts = tl.zeros([BLOCK], tl.int32)
        for first in range(0, S, BLOCK):
            mask = first + columns < S
            bits = _magnitudes(denoised, start + first + columns, mask)
            counts += (mask & (bits <= middle)).to(tl.int32)
        is_enough = tl.sum(counts, 0) > above
        high = tl.where(is_enough, middle, high)
        low = tl.where(is_enough, low, middle + 1)
    # The neighbour below is the same number again, or else the largest of those under it.
    counts = tl.zeros([BLOCK], tl.int32)
    under = tl.zeros([BLOCK], tl.int32)
    for first in range(0, S, BLOCK):
        mask = first + columns < S
        bits = _magnitudes(denoised, start + first + columns, mask)
        is_under = mask & (bits < low)
        counts += is_under.to(tl.int32)
        under = tl.maximum(under, tl.where(is_under, bits, 0))
    lower = tl.where(tl.sum(counts, 0) > below, tl.max(under, 0), low)
    b = low.to(tl.float32, bitcast=True)
    a = lower.to(tl.float32, bitcast=True)
    # As torch.lerp does it: from the nearer end, and the product is not rounded before it is added.
    apart = (b - a).to(tl.float64)
    near_a = a.to(tl.float64) + apart * fraction
    near_b = b.to(tl.float64) + apart * (fraction - 1.0)
    between = tl.where(fraction < 0.5, near_a, near_b).to(tl.float32)
    return tl.where(highest > _INFINITY_BITS, _NAN, tl.maximum(between, 1.0))


@triton.jit
def _quantile_step_kernel(
    x, predictions, noise, coefficients, following, denoised,  # [N, S], predictions [BRANCHES * N, S]
    size, S, below, above, fraction, w0, w1, w2, w3,
    BRANCHES: tl.constexpr, PREDICTED: tl.constexpr, HAS_NOISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Step with dynamic thresholding: one program per sample, which it leaves in ``denoised`` between the passes."""
    start = tl.program_id(0).to(tl.int64) * S
    columns = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], 0, tl.int32)
    for first in range(0, S, BLOCK):
        mask = first + columns < S
        at = start + first + columns
        values = _estimate(predictions, x, coefficients, at, mask, size, w0, w1, w2, w3, BRANCHES, PREDICTED)
        tl.store(denoised + at, values, mask=mask)
        largest = tl.maximum(largest, tl.where(mask, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0))
    # Other threads than those that wrote an element may read it from here on.
    tl.debug_barrier()
    limit = _quantile_limit(denoised, start, S, tl.max(largest, 0), below, above, fraction, BLOCK)
    for first in range(0, S, BLOCK):
        mask = first + columns < S
        at = start + first + columns
        values = tl.div_rn(_clipped(tl.load(denoised + at, mask=mask, other=0.0), limit), limit)
        # Only the thread that read an element writes it.
        tl.store(denoised + at, values, mask=mask)
        _advance(values, x, noise, coefficients, following, at, mask, HAS_NOISE)


@lru_cache(maxsize=64)
def ranks(size: int, ratio: float) -> tuple[int, int, float]:
    """Return the ranks on both sides of a quantile and the way between them, rounded as ``torch.quantile`` does."""
    rank = torch.tensor(ratio, dtype=torch.float32) * (size - 1)
    below = int(rank)
    return below, int(rank.ceil()), float(rank - below)


def _layout(x: Tensor) -> torch.memory_format | None:
    """Return the memory format in which the samples of ``x`` lie one after the other, or None."""
    if x.is_contiguous():
        return torch.contiguous_format
    is_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else None


def _fits(x: Tensor, threshold: str) -> bool:
    return threshold != "quantile" or x[0].numel() <= MAX_SAMPLE


@implements(
    _sample_step,
    "triton",
    ON_DEVICE,
    FLOATS,
    NOT_EMPTY,
    Constraint(
        "x and coefficients are float32",
        lambda predictions, x, noise, coefficients, *_: x.dtype is coefficients.dtype is torch.float32,
    ),
    Constraint("x is contiguous or channels-last in memory", lambda predictions, x, *_: _layout(x) is not None),
    Constraint(f"there are at most {MAX_BRANCHES} branches", lambda *args: len(args[4]) <= MAX_BRANCHES),
    Constraint(
        f"samples to clip at a quantile have at most {MAX_SAMPLE} elements", lambda *args: _fits(args[1], args[6])
    ),
)
def sample_step(
    predictions: Tensor,
    x: Tensor,
    noise: Tensor | None,
    coefficients: Tensor,
    weights: list[float],
    predicted: str,
    threshold: str,
    ratio: float,
) -> tuple[Tensor, Tensor]:
    """Run the step without a sort and without asking the device for anything."""
    layout = _layout(x)
    # Latents are small beside what the network moves; most of the time these are no copies at all.
    predictions = predictions.contiguous(memory_format=layout)
    has_noise = noise is not None
    noise = noise.contiguous(memory_format=layout) if has_noise else x
    following, denoised = torch.empty_like(x), torch.empty_like(x)
    tensors = (x, predictions, noise, coefficients.contiguous(), following, denoised)
    factors = (*weights, *[0.0] * (MAX_BRANCHES - len(weights)))
    # Without fused multiply-adds every operation rounds as in the formula: results are equal to the last bit.
    options = {"BRANCHES": len(weights), "PREDICTED": predicted, "HAS_NOISE": has_noise, "enable_fp_fusion": False}
    if threshold == "quantile":
        samples, size = x.shape[0], x[0].numel()
        launch(
            _quantile_step_kernel, samples, *tensors, x.numel(), size, *ranks(size, ratio), *factors,
            **options, BLOCK=SAMPLE_TILE, num_warps=32,
        )  # fmt: skip
    else:
        launch(
            _step_kernel, triton.cdiv(x.numel(), TILE), *tensors, x.numel(), *factors,
            **options, THRESHOLDS=threshold == "range", BLOCK=TILE, num_warps=4,
        )  # fmt: skip
    return following, denoised
