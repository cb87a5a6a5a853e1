import importlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.compare import assert_as_good_as_formula

from fusionframes.ff_kernels.errors import NoBackendError
from fusionframes.ff_kernels.ops import linear
from fusionframes.ff_kernels.ops.linear import _linear
from fusionframes.ff_kernels.ops.registry import refusals, unavailable, use_backend

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])


def check(*args, backend="triton"):
    with use_backend(backend):
        got = _linear(*args)
    assert got.is_contiguous()
    exact = _linear.formula(*(a.double() if isinstance(a, torch.Tensor) else a for a in args))
    assert_as_good_as_formula(got, _linear.formula(*args), exact)


def layer(shape, outputs, dtype, device, bias=True, residual=True):
    x, weight = torch.randn(*shape).to(device, dtype), torch.randn(outputs, shape[-1]).to(device, dtype)
    b = torch.randn(outputs).to(device, dtype) if bias else None
    return x, weight, b, torch.randn(*shape[:-1], outputs).to(device, dtype) if residual else None


CASES = {
    "c192_level_0": ((2, 40, 192), 192),
    "wide_output_of_two_tiles": ((129, 64), 256),
    "odd_everything": ((3, 7, 5), 3),
    "one_line": ((1, 70), 33),
    "tail_of_the_sum": ((65, 130), 64),
    "a_second_band_of_lines": ((1100, 16), 16),
    "maps": ((2, 4, 5, 24), 48),
}


@dtypes
@pytest.mark.parametrize(("shape", "outputs"), CASES.values(), ids=CASES)
def test_linear_is_as_exact_as_the_formula(shape, outputs, dtype, device, triton_backend):
    check(*layer(shape, outputs, dtype, device), True)


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_each_part_is_optional(backend, bias, residual, activate, device, triton_backend):
    device = device if backend == "triton" else "cpu"
    check(*layer((2, 9, 40), 24, torch.float32, device, bias, residual), activate, backend=backend)


@dtypes
def test_slices_and_transposed_weights_are_read_in_place(dtype, device, triton_backend):
    x, weight, bias, residual = layer((3, 11, 80), 20, dtype, device)
    check(x[..., 8:48], weight[:, :40], bias, residual, True)
    check(x, weight.t().contiguous().t(), bias, residual.transpose(0, 1).contiguous().transpose(0, 1), False)
    check(x.transpose(1, 2).contiguous().transpose(1, 2), weight, bias, residual, False)


def test_cpu_linear_reads_slices():
    x, weight, bias, residual = layer((3, 11, 80), 20, torch.float32, "cpu")
    check(x[..., 8:48], weight[:, :40], bias, residual, False, backend="cpu")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 140), st.integers(1, 140), st.integers(1, 140))
def test_linear_of_any_shape_is_as_exact_as_the_formula(device, triton_backend, lines, inputs, outputs):
    check(*layer((lines, inputs), outputs, torch.float32, device), True)


def test_kernel_is_chosen_only_where_it_pays(device):
    if unavailable("triton"):
        pytest.skip(f"triton: {unavailable('triton')}")
    half = layer((128, 16), 16, torch.float16, device)
    assert refusals(_linear, "triton", (*half, False)) == []
    plain = (*half[:3], None)
    assert "the vendor's product is faster" in refusals(_linear, "triton", (*plain, False))[0]
    assert refusals(_linear, "triton", (*plain, True)) == []
    assert refusals(_linear, "triton", (*layer((127, 16), 16, torch.float16, device), True))
    assert refusals(_linear, "triton", (*layer((128, 16), 16, torch.float32, device), True))


def test_forced_kernel_names_what_it_needs(device, triton_backend):
    x, weight, bias, residual = layer((2, 9, 40), 24, torch.float32, device)
    with pytest.raises(NoBackendError, match=r"residual have one dtype; the residual has the shape of the result: "):
        linear(x, weight, bias.half(), residual=residual[:1])


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_linear_passes_opcheck(backend):
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    with use_backend(backend):
        torch.library.opcheck(_linear._op, (*layer((2, 9, 40), 24, torch.float32, "cpu"), False), test_utils=utils)
        torch.library.opcheck(
            _linear._op, (*layer((2, 9, 40), 24, torch.float32, "cpu", False, False), True), test_utils=utils
        )


@pytest.fixture
def kernels(triton_backend):
    return importlib.import_module("fusionframes.ff_kernels.ops.triton.linear")


@pytest.mark.parametrize(("card", "refuses"), [("sm_75", True), ("sm_80", False), ("gfx1100", False), ("", False)])
def test_kernel_refuses_turing_in_words(card, refuses, kernels, device, monkeypatch):
    monkeypatch.setattr(kernels, "architecture", lambda x: card)
    why = refusals(_linear, "triton", (*layer((128, 16), 16, torch.float16, device), True))
    assert any("no Turing (sm_75)" in reason for reason in why) is refuses


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_tiles_for_few_registers_multiply_as_the_formula(dtype, kernels, device, monkeypatch):
    monkeypatch.setattr(kernels, "architecture", lambda x: "gfx1100")
    assert kernels.tile_of("gfx1100", 128, dtype.itemsize) != kernels.tile_of("sm_89", 128, dtype.itemsize)
    check(*layer((130, 40), 128, dtype, device), True)
