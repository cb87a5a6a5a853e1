import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.compare import assert_as_good_as_formula

from fusionframes.ff_kernels.ops import nearest_conv, nearest_kernels, winograd_conv, winograd_taps
from fusionframes.ff_kernels.ops.conv import _nearest_conv, _residual_conv, _winograd_conv
from fusionframes.ff_kernels.ops.cpu import conv as on_cpu
from fusionframes.ff_kernels.ops.registry import use_backend

LIMIT = 1e-12


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def layer(shape, outputs, kernel=(3, 3), dtype=torch.float32, bias=True, residual=True):
    """Input, kernel, bias and residual of a convolution that keeps the size."""
    x, weight = channels_last(torch.randn(*shape, dtype=dtype)), torch.randn(outputs, shape[1], *kernel, dtype=dtype)
    after = channels_last(torch.randn(shape[0], outputs, *shape[2:], dtype=dtype)) if residual else None
    return x, weight, torch.randn(outputs, dtype=dtype) if bias else None, after


def check(op, *args):
    with use_backend("cpu"):
        got = op(*args)
    fake = op.fake(*args)
    assert got.shape == fake.shape
    assert got.stride() == fake.stride()
    exact = op.formula(*(a.double() if isinstance(a, torch.Tensor) else a for a in args))
    assert_as_good_as_formula(got, op.formula(*args), exact)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_nearest_conv_is_doubling_and_the_3x3_convolution(samples, height, width, bias):
    x, weight, b, _ = layer((samples, 3, height, width), 5, dtype=torch.float64, bias=bias)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, b, padding=1)
    got = nearest_conv(x, nearest_kernels(weight), b)
    assert (got - expected).abs().max() / expected.abs().max() < LIMIT


@pytest.mark.parametrize("block", [1, 1000, 1 << 22], ids=["a_row", "a_few_rows", "everything"])
@pytest.mark.parametrize("shape", [(2, 16, 5, 7), (1, 16, 1, 1), (1, 16, 4, 4)], ids=["odd", "one_position", "even"])
def test_nearest_conv_in_blocks_is_as_exact_as_the_formula(shape, block, monkeypatch):
    monkeypatch.setattr(on_cpu, "_BLOCK_BYTES", block)
    x, weight, bias, _ = layer(shape, 24)
    check(_nearest_conv, x, nearest_kernels(weight), bias)
    check(_nearest_conv, x, nearest_kernels(weight), None)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 13), st.integers(1, 9), st.booleans(), st.booleans())
def test_winograd_is_the_3x3_convolution(samples, height, width, bias, residual):
    x, weight, b, after = layer((samples, 3, height, width), 5, dtype=torch.float64, bias=bias, residual=residual)
    expected = F.conv2d(x, weight, b, padding=1) + (0 if after is None else after)
    got = winograd_conv(x, winograd_taps(weight), b, residual=after)
    assert (got - expected).abs().max() / expected.abs().max() < LIMIT


SHAPES = {
    "one_tile": (2, 16, 4, 5),
    "height_that_is_no_multiple_of_four": (1, 16, 7, 3),
    "one_row": (3, 16, 1, 6),
    "several_tiles": (2, 16, 12, 8),
    "more_channels_than_positions": (2, 16, 4, 2),
}


@pytest.mark.parametrize("block", [1, 1500, 3000, 1 << 22], ids=["a_tile", "two_tiles", "one_sample", "everything"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_winograd_in_blocks_is_as_exact_as_the_formula(shape, block, monkeypatch):
    monkeypatch.setattr(on_cpu, "_BLOCK_BYTES", 2 * block)
    x, weight, bias, after = layer(shape, 24)
    check(_winograd_conv, x, winograd_taps(weight), bias, after)
    check(_winograd_conv, x, winograd_taps(weight), None, None)


def test_winograd_in_float32_errs_little_more_than_the_plain_convolution():
    x, weight, bias, _ = layer((1, 256, 16, 16), 256)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    plain, ours = (
        ((y - exact).norm() / exact.norm()).item()
        for y in (F.conv2d(x, weight, bias, padding=1), winograd_conv(x, winograd_taps(weight), bias))
    )
    # Two to four times as much, as the plain one's order of sums has it; both directions at once would be eleven.
    assert ours < 8 * plain


@pytest.mark.parametrize("kernel", [(3, 1), (1, 1), (3, 3)], ids=["over_time", "pointwise", "spatial"])
@pytest.mark.parametrize("bias", [False, True])
def test_residual_conv_is_as_exact_as_the_formula(kernel, bias):
    x, weight, b, after = layer((2, 16, 5, 6), 24, kernel, bias=bias)
    check(_residual_conv, x, weight, b, after, [k // 2 for k in kernel])


def test_residual_conv_reads_plain_maps():
    x, weight, b, after = layer((2, 16, 5, 6), 24, (3, 1))
    check(_residual_conv, x.contiguous(), weight, b, after.contiguous(), [1, 0])


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_convolutions_pass_opcheck(backend):
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    x, weight, bias, after = layer((2, 8, 6, 5), 16)
    with use_backend(backend):
        torch.library.opcheck(_winograd_conv._op, (x, winograd_taps(weight), bias, after), test_utils=utils)
        torch.library.opcheck(_winograd_conv._op, (x, winograd_taps(weight), None, None), test_utils=utils)
        torch.library.opcheck(_nearest_conv._op, (x, nearest_kernels(weight), bias), test_utils=utils)
        torch.library.opcheck(_residual_conv._op, (x, weight, bias, after, [1, 1]), test_utils=utils)
