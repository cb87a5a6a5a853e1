import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.compare import assert_as_good_as_formula

from fusionframes.ff_kernels.errors import NoBackendError
from fusionframes.ff_kernels.ops import attend, attend_over_time
from fusionframes.ff_kernels.ops.attention import _attend_over_time

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])


def check(query, key, value, heads):
    formula = _attend_over_time.formula
    exact = formula(query.double(), key.double(), value.double(), heads)
    got = attend_over_time(query, key, value, heads)
    assert got.is_contiguous()
    assert_as_good_as_formula(got, formula(query, key, value, heads), exact)


CASES = {
    "five_frames": (2, 5, 3, 2, 16),
    "keyframes_t15": (1, 15, 6, 2, 64),
    "frames_fill_the_tile": (1, 16, 2, 1, 32),
    "one_frame_over_a_power_of_two": (1, 17, 5, 2, 16),
    "head_of_48": (1, 12, 7, 2, 48),
    "longest_clip": (1, 64, 2, 1, 64),
    "one_frame": (2, 1, 3, 1, 16),
    "one_pixel": (1, 15, 1, 3, 16),
}


@dtypes
@pytest.mark.parametrize(("B", "T", "P", "heads", "channels"), CASES.values(), ids=CASES)
def test_attend_over_time_is_as_exact_as_the_formula(B, T, P, heads, channels, dtype, device, triton_backend):
    check(*torch.randn(3, B, T, P, heads * channels).to(device, dtype), heads)


@dtypes
def test_slices_of_one_projection_need_no_copy(dtype, device, triton_backend):
    query, key, value = torch.randn(2, 15, 5, 3 * 64).to(device, dtype).chunk(3, dim=-1)
    check(query, key, value, 2)
    check(query.transpose(1, 2).contiguous().transpose(1, 2), key, value, 2)


def test_large_scores_do_not_overflow(device, triton_backend):
    query, key, value = torch.randn(3, 1, 15, 4, 32).to(device)
    check(query * 100, key * 100, value, 1)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 2), st.integers(1, 24), st.integers(1, 9), st.integers(1, 3), st.integers(16, 40))
def test_attention_of_any_shape_is_as_exact_as_the_formula(device, triton_backend, B, T, P, heads, channels):
    check(*torch.randn(3, B, T, P, heads * channels).to(device), heads)


def test_forced_kernel_names_what_it_needs(device, triton_backend):
    x = torch.randn(1, 65, 1, 1024).to(device)
    with pytest.raises(NoBackendError, match=r"at most 64 frames; a head has 16 to 64 channels: take"):
        attend_over_time(x, x, x, 1)


def test_attend_over_time_passes_opcheck():
    query, key, value = torch.randn(2, 5, 3, 3 * 32).chunk(3, dim=-1)
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(_attend_over_time._op, (query, key, value, 2), test_utils=utils)


def _gradients(function, tensors, grad):
    tensors = tuple(t.detach().requires_grad_() for t in tensors)
    return torch.autograd.grad(function(*tensors), tensors, grad.to(tensors[0].dtype))


@torch.enable_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=("bfloat16", "float16"))
@pytest.mark.parametrize("over_time", [False, True], ids=("positions", "time"))
def test_gradients_in_16_bits_are_as_exact_as_those_of_torch(over_time, dtype):
    def ours(query, key, value):
        if over_time:
            return attend_over_time(query, key, value, 2)
        return attend(query[:, 0], key[:, 0], value[:, 0], 2, mask)

    def theirs(query, key, value):
        query, key, value = (t.unflatten(-1, (2, -1)).movedim(-2, 1) for t in (query, key, value))
        if over_time:
            out = F.scaled_dot_product_attention(*(t.transpose(2, 3) for t in (query, key, value))).transpose(2, 3)
            return out.movedim(1, -2).flatten(-2)
        out = F.scaled_dot_product_attention(query[:, :, 0], key[:, :, 0], value[:, :, 0], mask[:, None, None])
        return out.transpose(1, 2).flatten(-2)

    mask = torch.arange(9) < torch.tensor([[9], [5]])
    tensors = torch.randn(3, 2, 6, 9, 32).to(dtype)
    grad = torch.randn(2, 6, 9, 32) if over_time else torch.randn(2, 9, 32)
    exact = _gradients(theirs, tensors.double(), grad.to(dtype).double())
    for got, formula, wanted in zip(
        _gradients(ours, tensors, grad), _gradients(theirs, tensors, grad), exact, strict=True
    ):
        assert_as_good_as_formula(got.contiguous(), formula.contiguous(), wanted)
