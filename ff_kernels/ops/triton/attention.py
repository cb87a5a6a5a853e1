"""Attention along time: clips are a few dozen frames long, so a program keeps all queries of some pixels at hand."""

# ruff: noqa: ANN001, ANN202 (kernel code has Triton's types)

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention import _attend_over_time
from ..registry import Constraint, implements
from ._runtime import FLOATS, NOT_EMPTY, ON_DEVICE, launch, same_dtype

# Elements of the queries of a program: 32 per thread of four warps, as many again for the results, float32.
TILE = 4096
WARPS = 4
MAX_FRAMES = 64
HEAD_CHANNELS = range(16, 65)


@triton.jit
def _attention_kernel(
    query, key, value,  # [B, T, P, C], any strides but 1 along C
    out,  # [B, T, P, C]
    T, P, heads, channels, scale,
    query_b, query_t, query_p, key_b, key_t, key_p, value_b, value_t, value_p,
    PIXELS: tl.constexpr, FRAMES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Attend with a running maximum over the keys, read once each; everything in float32, one rounding out."""
    # The heads of the same pixels share cache lines, so they are neighbours in the order of their start.
    program = tl.program_id(0)
    head = program % heads
    blocks = tl.cdiv(P, PIXELS)
    b = (program // heads // blocks).to(tl.int64)
    pixels = ((program // heads % blocks) * PIXELS + tl.arange(0, PIXELS)).to(tl.int64)
    frames = tl.arange(0, FRAMES).to(tl.int64)
    depth = tl.arange(0, CHANNELS)
    cols = head * channels + depth
    is_key = (pixels < P)[:, None] & (depth < channels)[None, :]
    is_query = is_key[:, None, :] & (frames < T)[None, :, None]
    at = pixels[:, None, None] * query_p + frames[None, :, None] * query_t + cols[None, None, :]
    queries = tl.load(query + b * query_b + at, mask=is_query, other=0.0).to(tl.float32) * scale
    keys = key + b * key_b + pixels[:, None] * key_p + cols[None, :]
    values = value + b * value_b + pixels[:, None] * value_p + cols[None, :]
    highest = tl.full([PIXELS, FRAMES], float("-inf"), tl.float32)
    total = tl.zeros([PIXELS, FRAMES], tl.float32)
    mixed = tl.zeros([PIXELS, FRAMES, CHANNELS], tl.float32)
    for _ in range(T):
        fresh_key = tl.load(keys, mask=is_key, other=0.0).to(tl.float32)
        fresh_value = tl.load(values, mask=is_key, other=0.0).to(tl.float32)
        score = tl.sum(queries * fresh_key[:, None, :], 2)  # [PIXELS, FRAMES]
        above = tl.maximum(highest, score)
        # A padded pixel or frame scores 0, so no maximum stays at minus infinity.
        kept = tl.exp(highest - above)
        weight = tl.exp(score - above)
        total = total * kept + weight
        mixed = mixed * kept[:, :, None] + weight[:, :, None] * fresh_value[:, None, :]
        highest = above
        keys += key_t
        values += value_t
    mixed = mixed / total[:, :, None]
    C = heads * channels
    at = ((b * T + frames[None, :, None]) * P + pixels[:, None, None]) * C + cols[None, None, :]
    tl.store(out + at, mixed.to(out.dtype.element_ty), mask=is_query)


@implements(
    _attend_over_time,
    "triton",
    ON_DEVICE,
    FLOATS,
    NOT_EMPTY,
    Constraint(
        "query, key and value have one shape and one dtype",
        lambda query, key, value, _: query.shape == key.shape == value.shape and same_dtype(query, key, value),
    ),
    Constraint("channels lie side by side in memory", lambda *qkv: all(t.stride(-1) == 1 for t in qkv[:3])),
    Constraint(f"a clip has at most {MAX_FRAMES} frames", lambda query, *_: query.shape[1] <= MAX_FRAMES),
    Constraint(
        f"a head has {HEAD_CHANNELS[0]} to {HEAD_CHANNELS[-1]} channels",
        lambda query, key, value, heads: query.shape[-1] // heads in HEAD_CHANNELS,
    ),
)
def attend_over_time(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attend at some pixels and one head per program, without a copy of slices of one projection."""
    B, T, P, C = query.shape
    channels = C // heads
    frames, depth = triton.next_power_of_2(T), triton.next_power_of_2(channels)
    pixels = min(max(1, TILE // (frames * depth)), triton.next_power_of_2(P))
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    launch(
        _attention_kernel, B * triton.cdiv(P, pixels) * heads, query, key, value, out,
        T, P, heads, channels, channels**-0.5, *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        PIXELS=pixels, FRAMES=frames, CHANNELS=depth, num_warps=WARPS,
    )  # fmt: skip
    return out
