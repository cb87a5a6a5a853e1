"""Group normalisation of channels-last pictures, modulated by rows (U-Nets) or by maps of the latent (MoVQ).

A program owns a few whole groups, that is a run of neighbouring channels, so that reads along the channels are wide
whatever the number of channels per group is (192 channels in 32 groups have six). It keeps statistics per channel and
position of its tile while it reads and merges them to groups once, at the end. Small pictures are normalised by the
programs that measured them, and the second read comes from the cache; for large ones a kernel writes statistics per
chunk of positions and the next one merges them and applies.
"""

# ruff: noqa: ANN001, ANN202 (kernel code has Triton's types)

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constraints import CHANNELS_LAST
from ..norm import ONE_PASS_POSITIONS, _group_norm_mod, _spatial_norm_act
from ..registry import Constraint, implements
from ._runtime import FLOATS, NOT_EMPTY, ON_DEVICE, launch

# Elements of a tile: 16 per thread of four warps, three float32 of each in registers while statistics are taken.
TILE = 2048
WARPS = 4
# Channels of a program: 128 bytes of 16-bit numbers side by side, a full cache line.
LANES = 64
# Positions of a chunk at least, and chunks of a picture at most: each applying program merges them all.
CHUNK_POSITIONS = 256
MAX_CHUNKS = 256
MAX_CHANNELS_PER_GROUP = 1024
# Latent channels that a program multiplies out in registers, one after the other.
MAX_LATENT_CHANNELS = 16


@triton.jit
def _merge(means, deviations, counts, AXIS: tl.constexpr):
    """Merge parts with means, sums of squared deviations and counts along an axis (Chan et al. 1979)."""
    total = tl.maximum(tl.sum(counts, AXIS), 1.0)
    rough = tl.sum(means * counts, AXIS) / total
    # The rounding of a sum of large means is many times that of a small one, so it is taken out by a second sum.
    mean = rough + tl.sum((means - tl.expand_dims(rough, AXIS)) * counts, AXIS) / total
    apart = means - tl.expand_dims(mean, AXIS)
    return mean, tl.sum(deviations + counts * apart * apart, AXIS)


@triton.jit
def _measure(x, positions, C, cols, is_col, owns, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Return mean and sum of squared deviations of each group over ``positions`` lines of C channels from ``x``."""
    rows = tl.arange(0, ROWS)
    pointers = x + rows[:, None] * C + cols[None, :]
    mean = tl.zeros([ROWS, LANES], tl.float32)
    deviation = tl.zeros([ROWS, LANES], tl.float32)
    seen = 0.0
    for first in range(0, positions, ROWS):
        mask = (first + rows < positions)[:, None] & is_col[None, :]
        values = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
        seen += 1.0
        apart = values - mean
        moved = mean + apart / seen
        deviation = tl.where(mask, deviation + apart * (values - moved), deviation)
        mean = tl.where(mask, moved, mean)
        pointers += ROWS * C
    counts = tl.maximum((positions - rows + ROWS - 1) // ROWS, 0).to(tl.float32)
    mean, deviation = _merge(mean, deviation, counts[:, None] + tl.zeros([ROWS, LANES], tl.float32), 0)
    weights = tl.where(owns, positions, 0).to(tl.float32)
    return _merge(mean[None, :], tl.where(owns, deviation[None, :], 0.0), weights, 1)


@triton.jit
def _recall(
    partials, first_group, n, half, G, P, chunk, chunks,
    PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Return mean and sum of squared deviations of each group from what ``_statistics_kernel`` wrote."""
    groups = first_group + tl.arange(0, GROUPS)
    parts = tl.arange(0, CHUNKS)
    mask = (groups < G)[:, None] & (parts < chunks)[None, :]
    pointers = partials + (n * G + groups[:, None]) * chunks + parts[None, :]
    means = tl.load(pointers, mask=mask, other=0.0)
    deviations = tl.load(pointers + half, mask=mask, other=0.0)
    counts = tl.minimum(tl.maximum(P - parts * chunk, 0), chunk).to(tl.float32) * PER_GROUP
    return _merge(means, deviations, tl.where(mask, counts[None, :], 0.0), 1)


@triton.jit
def _spread(values, owns):
    """Give each channel the value of its group: ``[GROUPS]`` to ``[LANES]``."""
    return tl.sum(tl.where(owns, values[:, None], 0.0), 0)


@triton.jit
def _place(
    C, blocks, chunks, PER_PROGRAM: tl.constexpr, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr
):
    """Return sample, chunk and first group of this program, its channels and which group owns which of them."""
    # Programs that share cache lines, neighbours along the channels, are neighbours in the order of their start.
    program = tl.program_id(0)
    first_group = (program % blocks) * PER_PROGRAM
    chunk_index = program // blocks % chunks
    n = (program // blocks // chunks).to(tl.int64)
    cols = tl.arange(0, LANES)
    # Written so that the compiler sees masks in runs of eight channels, without which it reads one at a time.
    is_col = (cols < PER_PROGRAM * PER_GROUP) & (first_group * PER_GROUP + cols < C)
    owns = (cols[None, :] // PER_GROUP == tl.arange(0, GROUPS)[:, None]) & is_col[None, :]
    return n, chunk_index, first_group, cols, is_col, owns


@triton.jit
def _activated(values, ACTIVATE: tl.constexpr):
    return values * tl.sigmoid(values) if ACTIVATE else values


@triton.jit
def _statistics_kernel(
    x,  # [N, P, C]
    partials,  # [2, N, G, chunks]: means, then sums of squared deviations
    half, P, C, G, blocks, chunk, chunks,
    PER_PROGRAM: tl.constexpr, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    n, chunk_index, first_group, cols, is_col, owns = _place(C, blocks, chunks, PER_PROGRAM, PER_GROUP, GROUPS, LANES)
    start = chunk_index * chunk
    source = x + (n * P + start) * C + first_group * PER_GROUP
    mean, deviation = _measure(source, tl.minimum(chunk, P - start), C, cols, is_col, owns, ROWS, LANES)
    groups = tl.arange(0, GROUPS)
    mask = (groups < PER_PROGRAM) & (first_group + groups < G)
    pointers = partials + (n * G + first_group + groups) * chunks + chunk_index
    tl.store(pointers, mean, mask=mask)
    tl.store(pointers + half, deviation, mask=mask)


@triton.jit
def _normalisation(
    x, partials, n, positions, first_group, cols, is_col, owns, half, P, C, G, chunk, chunks, eps,
    PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Return mean and 1 / standard deviation per channel; CHUNKS 0 measures, else statistics are recalled."""
    if CHUNKS == 0:
        mean, deviation = _measure(x, positions, C, cols, is_col, owns, ROWS, LANES)
    else:
        mean, deviation = _recall(partials, first_group, n, half, G, P, chunk, chunks, PER_GROUP, GROUPS, CHUNKS)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(deviation / (P * PER_GROUP) + eps))
    return _spread(mean, owns), _spread(inverse, owns)


@triton.jit
def _modulate_kernel(
    x,  # [N, P, C]
    partials,
    rows,  # [R, 2C], scale then shift
    out,  # [N, P, C]
    half, P, C, G, blocks, chunk, chunks, eps, row_stride, share,
    PER_PROGRAM: tl.constexpr, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
    CHUNKS: tl.constexpr, CYCLIC: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    n, chunk_index, first_group, cols, is_col, owns = _place(C, blocks, chunks, PER_PROGRAM, PER_GROUP, GROUPS, LANES)
    start = chunk_index * chunk
    positions = tl.minimum(chunk, P - start)
    base = (n * P + start) * C + first_group * PER_GROUP
    mean, inverse = _normalisation(
        x + base, partials, n, positions, first_group, cols, is_col, owns, half, P, C, G, chunk, chunks, eps,
        PER_GROUP, GROUPS, ROWS, LANES, CHUNKS,
    )  # fmt: skip
    row = rows + (n % share if CYCLIC else n // share) * row_stride + first_group * PER_GROUP
    gain = inverse * (tl.load(row + cols, mask=is_col, other=0.0).to(tl.float32) + 1.0)
    shift = tl.load(row + C + cols, mask=is_col, other=0.0).to(tl.float32)
    lines = tl.arange(0, ROWS)
    offsets = base + lines[:, None] * C + cols[None, :]
    for first in range(0, positions, ROWS):
        mask = (first + lines < positions)[:, None] & is_col[None, :]
        values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        # The mean is subtracted first: with it folded into the shift, large means would cost digits.
        values = (values - mean[None, :]) * gain[None, :] + shift[None, :]
        tl.store(out + offsets, _activated(values, ACTIVATE).to(out.dtype.element_ty), mask=mask)
        offsets += ROWS * C


@triton.jit
def _spatial_kernel(
    x,  # [N, P, C]
    partials,
    latents,  # [N or 1, Z, h, w], any strides
    gain, bias,  # [C, Z]
    gain_offset, bias_offset, weight, offset,  # [C]
    out,  # [N, P, C]
    half, P, C, G, blocks, chunk, chunks, eps,
    W, block_height, block_width, latent_n, latent_z, latent_y, latent_x,
    PER_PROGRAM: tl.constexpr, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
    CHUNKS: tl.constexpr, Z: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    n, chunk_index, first_group, cols, is_col, owns = _place(C, blocks, chunks, PER_PROGRAM, PER_GROUP, GROUPS, LANES)
    start = chunk_index * chunk
    positions = tl.minimum(chunk, P - start)
    channel = first_group * PER_GROUP
    base = (n * P + start) * C + channel
    mean, inverse = _normalisation(
        x + base, partials, n, positions, first_group, cols, is_col, owns, half, P, C, G, chunk, chunks, eps,
        PER_GROUP, GROUPS, ROWS, LANES, CHUNKS,
    )  # fmt: skip
    inverse *= tl.load(weight + channel + cols, mask=is_col, other=0.0).to(tl.float32)
    shift = tl.load(offset + channel + cols, mask=is_col, other=0.0).to(tl.float32)
    high_offset = tl.load(gain_offset + channel + cols, mask=is_col, other=0.0).to(tl.float32)
    low_offset = tl.load(bias_offset + channel + cols, mask=is_col, other=0.0).to(tl.float32)
    lines = tl.arange(0, ROWS)
    offsets = base + lines[:, None] * C + cols[None, :]
    columns = (channel + cols) * Z
    for first in range(0, positions, ROWS):
        mask = (first + lines < positions)[:, None] & is_col[None, :]
        position = start + first + lines
        at = n * latent_n + position // W // block_height * latent_y + position % W // block_width * latent_x
        values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        values = (values - mean[None, :]) * inverse[None, :] + shift[None, :]
        high = tl.zeros([ROWS, LANES], tl.float32) + high_offset[None, :]
        low = tl.zeros([ROWS, LANES], tl.float32) + low_offset[None, :]
        for z in tl.static_range(Z):
            # A few numbers that many programs read again: they stay in the cache, as the weights do.
            latent = tl.load(latents + at + z * latent_z, mask=first + lines < positions, other=0.0).to(tl.float32)
            to_high = tl.load(gain + columns + z, mask=is_col, other=0.0).to(tl.float32)
            to_low = tl.load(bias + columns + z, mask=is_col, other=0.0).to(tl.float32)
            high += latent[:, None] * to_high[None, :]
            low += latent[:, None] * to_low[None, :]
        values = values * high + low
        tl.store(out + offsets, _activated(values, ACTIVATE).to(out.dtype.element_ty), mask=mask)
        offsets += ROWS * C


class Plan(NamedTuple):
    """How a picture is cut into programs.

    Attributes:
        programs: programs of each kernel.
        partials: shape of the statistics between the kernels, 0 where one kernel does all.
        sizes: elements of half the statistics, P, C, groups, programs side by side, positions of a chunk, chunks.
        tile: compile-time sizes: groups of a program, channels of a group, groups as a power of two, lines and
            channels of a tile, chunks as a power of two.
    """

    programs: int
    partials: tuple[int, ...]
    sizes: tuple[int, ...]
    tile: dict[str, int]


def plan(x: Tensor, groups: int) -> Plan:
    """Cut ``[N, C, H, W]`` into programs."""
    N, C, H, W = x.shape
    P, per_group = H * W, C // groups
    per_program = 1
    while 2 * per_program * per_group <= LANES and per_program < min(groups, LANES // 2):
        per_program *= 2
    lanes = triton.next_power_of_2(per_program * per_group)
    rows = max(1, TILE // lanes)
    is_small = P <= ONE_PASS_POSITIONS
    # Whole tiles, so that only the last chunk of a picture has an unfinished one.
    chunk = P if is_small else triton.cdiv(max(CHUNK_POSITIONS, triton.cdiv(P, MAX_CHUNKS)), rows) * rows
    chunks, blocks = triton.cdiv(P, chunk), triton.cdiv(groups, per_program)
    tile = {
        "PER_PROGRAM": per_program,
        "PER_GROUP": per_group,
        "GROUPS": triton.next_power_of_2(per_program),
        "ROWS": rows,
        "LANES": lanes,
        "CHUNKS": 0 if is_small else triton.next_power_of_2(chunks),
    }
    sizes = (N * groups * chunks, P, C, groups, blocks, chunk, chunks)
    return Plan(N * blocks * chunks, (0,) if is_small else (2, N, groups, chunks), sizes, tile)


def _statistics(x: Tensor, cut: Plan) -> Tensor:
    """Return means and sums of squared deviations; no elements where one kernel does all."""
    partials = x.new_empty(cut.partials, dtype=torch.float32)
    if partials.numel():
        tile = {name: size for name, size in cut.tile.items() if name != "CHUNKS"}
        launch(_statistics_kernel, cut.programs, x, partials, *cut.sizes, **tile, num_warps=WARPS)
    return partials


_TWO_GIGA = Constraint(
    "a picture has fewer than 2^31 elements", lambda x, *_: x.shape[1] * x.shape[2] * x.shape[3] < 2**31
)


def _narrow(at: int) -> Constraint:
    return Constraint(
        f"a group has at most {MAX_CHANNELS_PER_GROUP} channels",
        lambda *args: args[0].shape[1] // args[at] <= MAX_CHANNELS_PER_GROUP,
    )


@implements(_group_norm_mod, "triton", ON_DEVICE, FLOATS, NOT_EMPTY, CHANNELS_LAST, _TWO_GIGA, _narrow(2))
def group_norm_mod(x: Tensor, rows: Tensor, groups: int, cyclic: bool, activate: bool, eps: float) -> Tensor:
    """Normalise, modulate and activate with one rounding: one kernel for small pictures, two for large ones."""
    cut = plan(x, groups)
    partials = _statistics(x, cut)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty_like(x, memory_format=torch.channels_last)
    share = rows.shape[0] if cyclic else x.shape[0] // rows.shape[0]
    launch(
        _modulate_kernel, cut.programs, x, partials, rows, out, *cut.sizes, eps, rows.stride(0), share,
        **cut.tile, CYCLIC=cyclic, ACTIVATE=activate, num_warps=WARPS,
    )  # fmt: skip
    return out


@implements(
    _spatial_norm_act,
    "triton",
    ON_DEVICE,
    FLOATS,
    NOT_EMPTY,
    CHANNELS_LAST,
    _TWO_GIGA,
    _narrow(8),
    Constraint(
        f"latents have at most {MAX_LATENT_CHANNELS} channels", lambda x, z, *_: z.shape[1] <= MAX_LATENT_CHANNELS
    ),
)
def spatial_norm_act(
    x: Tensor,
    latents: Tensor,
    gain: Tensor,
    gain_offset: Tensor,
    bias: Tensor,
    bias_offset: Tensor,
    weight: Tensor,
    offset: Tensor,
    groups: int,
    activate: bool,
    eps: float,
) -> Tensor:
    """Normalise and work both maps out in the same kernel; the statistics are those of ``group_norm_mod``."""
    cut = plan(x, groups)
    partials = _statistics(x, cut)
    (H, W), (h, w) = x.shape[-2:], latents.shape[-2:]
    _, *strides = latents.stride()
    small = (t.contiguous() for t in (gain, bias, gain_offset, bias_offset, weight, offset))
    out = torch.empty_like(x, memory_format=torch.channels_last)
    launch(
        _spatial_kernel, cut.programs, x, partials, latents, *small, out,
        *cut.sizes, eps, W, H // h, W // w, latents.stride(0) if latents.shape[0] > 1 else 0, *strides,
        **cut.tile, Z=latents.shape[1], ACTIVATE=activate, num_warps=WARPS,
    )  # fmt: skip
    return out
