"""Linear layer that adds its bias, activation and residual before the result is rounded and written."""

# ruff: noqa: ANN001, ANN202 (kernel code has Triton's types)

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..linear import _linear
from ..registry import Constraint, forced_backend, implements
from ._runtime import FLOATS, NOT_EMPTY, ON_DEVICE, architecture, dot, launch, same_dtype

# Below this many lines a product only streams its weights, which the vendor's library splits better.
MIN_LINES = 128
# Lines, outputs and inputs of a tile by bytes of a number, and for cards whose registers do not hold those (the rest
# would go through memory). Two tiles of 128 would idle a quarter of the 192 outputs of the widest level.
_TILES = {2: (128, 128, 64), 4: (128, 128, 32)}
_TILES_OF_CARD = {"gfx11": {2: (128, 128, 32), 4: (64, 64, 16)}}
_NARROW = 64


@triton.jit
def _linear_kernel(
    x,  # [M, K]
    weight,  # [N, K]
    bias,  # [N]
    residual,  # [M, N]
    out,  # [M, N]
    M, N, K, x_m, weight_o, weight_k, residual_m,
    LINES: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, BAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    # Programs run through bands of lines, so that the tiles of x and weight which a band shares stay in the cache.
    program = tl.program_id(0)
    across = tl.cdiv(N, OUTPUTS)
    band = program // (BAND * across)
    height = tl.minimum(tl.cdiv(M, LINES) - band * BAND, BAND)
    within = program % (BAND * across)
    lines = (band * BAND + within % height) * LINES + tl.arange(0, LINES).to(tl.int64)
    outputs = (within // height) * OUTPUTS + tl.arange(0, OUTPUTS).to(tl.int64)
    inputs = tl.arange(0, INPUTS)
    is_line, is_output = (lines < M)[:, None], (outputs < N)[None, :]
    left = x + lines[:, None] * x_m + inputs[None, :]
    right = weight + outputs[None, :] * weight_o + inputs[:, None] * weight_k
    total = tl.zeros([LINES, OUTPUTS], tl.float32)
    for first in range(0, K, INPUTS):
        is_input = first + inputs < K
        a = tl.load(left, mask=is_line & is_input[None, :], other=0.0)
        b = tl.load(right, mask=is_output & is_input[:, None], other=0.0)
        total = dot(a, b, total, PRECISION)
        left += INPUTS
        right += INPUTS * weight_k
    if HAS_BIAS:
        total += tl.load(bias + outputs, mask=outputs < N, other=0.0).to(tl.float32)[None, :]
    if ACTIVATE:
        total *= tl.sigmoid(total)
    is_inside = is_line & is_output
    if HAS_RESIDUAL:
        at = lines[:, None] * residual_m + outputs[None, :]
        total += tl.load(residual + at, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(out + lines[:, None] * N + outputs[None, :], total.to(out.dtype.element_ty), mask=is_inside)


def _pays(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activate: bool) -> bool:
    if forced_backend() == "triton":
        return True
    has_more = activate or residual is not None
    return has_more and x.element_size() == 2 and x.numel() >= MIN_LINES * x.shape[-1]


def refuses_card(card: str) -> bool:
    """Return whether products are left to the vendor on a card: Triton has no use for the matrix units of Turing."""
    return card == "sm_75"


def tile_of(card: str, outputs: int, element_size: int) -> dict[str, int]:
    """Return the tile of a product: lines, outputs and inputs that a program works on at a time."""
    by_size = next((tiles for prefix, tiles in _TILES_OF_CARD.items() if card.startswith(prefix)), _TILES)
    lines, wide, inputs = by_size[element_size]
    return {"LINES": lines, "OUTPUTS": wide if outputs % wide == 0 else _NARROW, "INPUTS": inputs}


def _lines_of(x: Tensor) -> Tensor:
    """View ``[..., K]`` as ``[M, K]`` with K side by side; only layouts that allow no such view are copied."""
    lines = x.reshape(-1, x.shape[-1])
    return lines if lines.stride(1) == 1 else lines.contiguous()


@implements(
    _linear,
    "triton",
    ON_DEVICE,
    FLOATS,
    NOT_EMPTY,
    Constraint(
        "x, weight, bias and residual have one dtype",
        lambda x, weight, bias, residual, _: same_dtype(x, weight, bias, residual),
    ),
    Constraint(
        "the residual has the shape of the result",
        lambda x, weight, bias, residual, _: residual is None or residual.shape == (*x.shape[:-1], weight.shape[0]),
    ),
    Constraint(
        "the card is no Turing (sm_75), where Triton multiplies number by number, beside the matrix units, and its "
        "sums do not fit into the registers",
        lambda x, *_: not refuses_card(architecture(x)),
    ),
    Constraint(
        f"an activation or a residual follows on {MIN_LINES} or more lines of 16-bit numbers, "
        "else the vendor's product is faster (not asked where triton is forced)",
        _pays,
    ),
)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activate: bool) -> Tensor:
    """Multiply in tiles with float32 sums, and round once after bias, activation and residual."""
    (N, K), lines = weight.shape, _lines_of(x)
    M = lines.shape[0]
    out = x.new_empty(*x.shape[:-1], N)
    after = out if residual is None else _lines_of(residual)
    tile = tile_of(architecture(x), N, x.element_size())
    may_round = torch.backends.cuda.matmul.allow_tf32
    launch(
        _linear_kernel, triton.cdiv(M, tile["LINES"]) * triton.cdiv(N, tile["OUTPUTS"]), lines, weight,
        weight if bias is None else bias.contiguous(), after, out,
        M, N, K, lines.stride(0), *weight.stride(), after.stride(0) if residual is not None else N,
        **tile, BAND=8, PRECISION="tf32" if may_round else "ieee",
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACTIVATE=activate, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out
