import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.compare import assert_as_good_as_formula

from fusionframes.ff_kernels.errors import NoBackendError, ShapeError
from fusionframes.ff_kernels.ops import group_norm_mod, modulate_by_maps, spatial_norm_act
from fusionframes.ff_kernels.ops.norm import ONE_PASS_POSITIONS, _group_norm_mod, _spatial_norm_act
from fusionframes.ff_kernels.ops.registry import use_backend

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def check(op, *args, backend="triton"):
    """Compare a backend with the formula, both against the formula in float64."""
    with use_backend(backend):
        got = op(*args)
    fake = op.fake(*args)
    assert got.shape == fake.shape
    assert got.stride() == fake.stride()
    exact = op.formula(*(a.double() if isinstance(a, torch.Tensor) else a for a in args))
    assert_as_good_as_formula(got, op.formula(*args), exact)


def modulated(shape, rows, dtype, device, mean=0.0):
    x = channels_last((torch.randn(shape) + mean).to(device, dtype))
    return x, torch.randn(rows, 2 * shape[1]).to(device, dtype)


SHAPES = {
    "c192_six_per_group": ((2, 192, 4, 4), 1, 32),
    "c8_one_group_per_channel": ((2, 8, 3, 3), 2, 8),
    "c9_odd_channels": ((2, 9, 3, 3), 2, 3),
    "c384_twelve_per_group": ((2, 384, 5, 3), 1, 32),
    "c3072_wide": ((1, 3072, 3, 3), 1, 32),
    "one_group": ((1, 40, 5, 5), 1, 1),
    "five_groups_of_a_program_s_eight": ((2, 30, 3, 5), 1, 5),
    "forty_groups_last_program_partly_idle": ((1, 240, 3, 3), 1, 40),
    "one_position": ((4, 64, 1, 1), 2, 32),
    "one_row_per_sample": ((3, 64, 5, 7), 3, 32),
    "odd_height_and_width": ((2, 64, 7, 9), 1, 32),
}


@dtypes
@pytest.mark.parametrize(("shape", "rows", "groups"), SHAPES.values(), ids=SHAPES)
def test_group_norm_mod_is_as_exact_as_the_formula(shape, rows, groups, dtype, device, triton_backend):
    check(_group_norm_mod, *modulated(shape, rows, dtype, device), groups, False, True, 1e-5)


@pytest.fixture
def two_passes(triton_backend, monkeypatch):
    """Two kernels for pictures of any size, so that small ones can test them."""
    from fusionframes.ff_kernels.ops.triton import norm

    monkeypatch.setattr(norm, "ONE_PASS_POSITIONS", 0)
    monkeypatch.setattr(norm, "CHUNK_POSITIONS", 32)


TWO_PASS = {
    "c192_tail_of_one_position": ((1, 192, 5, 13), 1, 32),
    "c9_odd_channels": ((2, 9, 12, 23), 2, 3),
    "three_chunks": ((2, 64, 7, 13), 2, 32),
    "one_chunk": ((2, 64, 2, 3), 1, 32),
}


@dtypes
@pytest.mark.parametrize(("shape", "rows", "groups"), TWO_PASS.values(), ids=TWO_PASS)
def test_two_pass_group_norm_is_as_exact_as_the_formula(shape, rows, groups, dtype, device, two_passes):
    check(_group_norm_mod, *modulated(shape, rows, dtype, device), groups, False, True, 1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (25, 41)], ids=["one_pass_limit", "first_two_pass_size"])
def test_group_norm_mod_is_exact_on_both_sides_of_the_one_pass_limit(height, width, device, triton_backend):
    assert abs(height * width - ONE_PASS_POSITIONS) <= 1
    check(_group_norm_mod, *modulated((1, 48, height, width), 1, torch.float16, device), 8, False, True, 1e-5)


@pytest.mark.parametrize("mean", [1000.0, -30000.0])
def test_group_norm_mod_of_a_mean_far_above_the_deviation_is_exact(mean, device, triton_backend):
    check(_group_norm_mod, *modulated((2, 48, 9, 9), 1, torch.float32, device, mean), 8, False, False, 1e-5)


def test_two_pass_group_norm_of_a_mean_far_above_the_deviation_is_exact(device, two_passes):
    check(_group_norm_mod, *modulated((1, 48, 13, 17), 1, torch.float32, device, 1000.0), 8, False, False, 1e-5)


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("cyclic", [False, True])
def test_cyclic_rows_and_activation_follow_the_formula(cyclic, activate, device, triton_backend):
    check(_group_norm_mod, *modulated((6, 16, 3, 3), 3, torch.float32, device), 8, cyclic, activate, 1e-5)


def test_rows_may_be_a_slice_of_a_table_in_another_dtype(device, triton_backend):
    x, table = modulated((2, 16, 3, 3), 6, torch.float16, device)
    check(_group_norm_mod, x, table.float()[::3], 8, False, True, 1e-5)
    check(_group_norm_mod, x, table[:2].t().contiguous().t(), 8, False, True, 1e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_group_norm_mod_of_any_shape_is_as_exact_as_the_formula(data, device, triton_backend):
    groups, per_group = data.draw(st.integers(1, 12)), data.draw(st.integers(2, 20))
    rows, share = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    shape = (rows * share, groups * per_group, data.draw(st.integers(1, 9)), data.draw(st.integers(2, 9)))
    x, rows = modulated(shape, rows, torch.float32, device)
    check(_group_norm_mod, x, rows, groups, data.draw(st.booleans()), True, 1e-5)


def mapped(samples, maps, C, h, w, up, dtype, device, z=4):
    x = channels_last(torch.randn(samples, C, h * up[0], w * up[1]).to(device, dtype))
    latents = torch.randn(maps, z, h, w).to(device, dtype)
    gain, bias = torch.randn(2, C, z).to(device, dtype)
    gain_offset, bias_offset, weight, offset = torch.randn(4, C).to(device, dtype)
    return x, latents, gain, gain_offset, bias, bias_offset, weight, offset


MAPS = {
    "latent_resolution": (2, 2, 64, 3, 5, (1, 1)),
    "twice_one_map_for_all": (2, 1, 64, 3, 5, (2, 2)),
    "eight_times_odd_sides": (1, 1, 64, 3, 1, (8, 8)),
    "unequal_factors": (2, 2, 96, 2, 3, (3, 4)),
    "c192_six_per_group": (1, 1, 192, 2, 2, (2, 2)),
}


@dtypes
@pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
def test_spatial_norm_act_is_as_exact_as_the_formula(case, dtype, device, triton_backend):
    check(_spatial_norm_act, *mapped(*case, dtype, device), 32, True, 1e-6)


@dtypes
@pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
def test_two_pass_spatial_norm_is_as_exact_as_the_formula(case, dtype, device, two_passes):
    check(_spatial_norm_act, *mapped(*case, dtype, device), 32, False, 1e-6)


def test_latents_may_lie_in_any_order_and_have_any_channels(device, triton_backend):
    x, latents, *rest = mapped(2, 2, 64, 3, 5, (2, 2), torch.float32, device)
    check(_spatial_norm_act, x, channels_last(latents), *rest, 32, True, 1e-6)
    check(_spatial_norm_act, x, latents.flip(0)[:1].expand(2, -1, -1, -1), *rest, 32, True, 1e-6)
    for z in (1, 3):
        check(_spatial_norm_act, *mapped(2, 2, 64, 3, 5, (2, 2), torch.float32, device, z), 32, True, 1e-6)


def test_latents_and_weights_may_be_wider_than_x(device, triton_backend):
    x, *rest = mapped(2, 2, 64, 3, 5, (2, 2), torch.float32, device)
    check(_spatial_norm_act, x.half(), *rest, 32, True, 1e-6)


def test_maps_from_the_latent_equal_the_convolutions_at_full_size():
    x, latents, gain, gain_offset, bias, bias_offset, weight, offset = mapped(
        2, 2, 64, 3, 5, (2, 3), torch.float64, "cpu"
    )
    large = torch.nn.functional.interpolate(latents, size=x.shape[-2:], mode="nearest")
    convs = ((gain, gain_offset), (bias, bias_offset))
    high, low = (torch.nn.functional.conv2d(large, w[:, :, None, None], b) for w, b in convs)
    expected = torch.nn.functional.group_norm(x, 32, weight, offset, 1e-6) * high + low
    got = spatial_norm_act(x, latents, *convs, (weight, offset), 32)
    assert (got - expected).abs().max() < 1e-12


@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("shape", [(6, 192, 7, 5), (6, 64, 33, 32)], ids=["c192_odd", "several_chunks"])
def test_cpu_group_norm_mod_is_as_exact_as_the_formula(shape, cyclic):
    check(_group_norm_mod, *modulated(shape, 3, torch.float32, "cpu"), 32, cyclic, True, 1e-5, backend="cpu")


@dtypes
@pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
def test_cpu_spatial_norm_is_as_exact_as_the_formula(case, dtype):
    check(_spatial_norm_act, *mapped(*case, dtype, "cpu"), 32, True, 1e-6, backend="cpu")


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_norm_ops_pass_opcheck(backend):
    x, rows = modulated((2, 16, 3, 4), 1, torch.float32, "cpu")
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    with use_backend(backend):
        torch.library.opcheck(_group_norm_mod._op, (x, rows, 8, False, True, 1e-5), test_utils=utils)
        args = mapped(2, 1, 64, 2, 2, (2, 2), torch.float32, "cpu")
        torch.library.opcheck(_spatial_norm_act._op, (*args, 32, True, 1e-6), test_utils=utils)


def test_wrong_rows_and_maps_are_named():
    x, rows = modulated((2, 16, 3, 4), 2, torch.float32, "cpu")
    with pytest.raises(ShapeError, match=r"rows \[R, 32\].*got x \[2, 16, 3, 4\] and rows \[2, 31\]"):
        group_norm_mod(x, rows[:, 1:], 8)
    conv, affine = (torch.zeros(16, 4), torch.zeros(16)), (rows[0, :16], rows[0, :16])
    with pytest.raises(ShapeError, match=r"sides divide 3 x 4 and weights \[16, z\], got \[2, 4, 2, 4\]"):
        spatial_norm_act(x, torch.zeros(2, 4, 2, 4), conv, conv, affine, 8)
    with pytest.raises(ShapeError, match=r"weights \[16, z\], got \[2, 3, 3, 4\], \[16, 4\]"):
        spatial_norm_act(x, torch.zeros(2, 3, 3, 4), conv, conv, affine, 8)


def test_forced_kernel_names_what_it_needs(device, triton_backend):
    x, rows = modulated((2, 16, 3, 4), 2, torch.float64, device)
    with pytest.raises(NoBackendError, match=r"float16, bfloat16 or float32; x is channels-last in memory: take"):
        group_norm_mod(x.contiguous(), rows, 8)


@torch.enable_grad()
@pytest.mark.parametrize("case", MAPS.values(), ids=MAPS)
def test_gradients_of_maps_are_those_of_the_formula(case):
    samples, maps, _, h, w, up = case
    x = channels_last(torch.randn(samples, 2, h * up[0], w * up[1]).double()).requires_grad_()
    gain, bias = (torch.randn(maps, 2, h, w).double().requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(modulate_by_maps, (x, gain, bias))
    assert torch.autograd.gradcheck(lambda x: modulate_by_maps(x, gain.detach(), bias), (x,))


@torch.enable_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=("bfloat16", "float16"))
def test_gradients_of_maps_in_16_bits_are_sums_of_float32(dtype):
    x, gain, bias = (torch.randn(2, 16, side, side).to(dtype).requires_grad_() for side in (32, 4, 4))
    grad = torch.randn(2, 16, 32, 32).to(dtype)
    got = torch.autograd.grad(modulate_by_maps(x, gain, bias), (x, gain, bias), grad)
    wide = tuple(t.detach().double().requires_grad_() for t in (x, gain, bias))
    exact = torch.autograd.grad(modulate_by_maps(*wide), wide, grad.double())
    for value, wanted in zip(got, exact, strict=True):
        assert value.dtype is dtype
        # 64 rounded products are added up; their sum is rounded once, not 64 times.
        assert (value.double() - wanted).abs().max() <= 2 * torch.finfo(dtype).eps * wanted.abs().max()


@torch.enable_grad()
@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_gradients_of_norms_are_those_of_the_formula(rows, cyclic):
    x = channels_last(torch.randn(4, 6, 3, 2).double()).requires_grad_()
    rows = torch.randn(rows, 12).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: group_norm_mod(*args, 3, cyclic=cyclic, activate=True), (x, rows))
    with torch.no_grad():
        plain = group_norm_mod(x, rows, 3, cyclic=cyclic, activate=True)
    trained = group_norm_mod(x, rows, 3, cyclic=cyclic, activate=True)
    torch.testing.assert_close(trained, plain, rtol=0, atol=1e-12)
    assert trained.is_contiguous(memory_format=torch.channels_last)


@torch.enable_grad()
def test_maps_that_want_no_gradient_leave_their_norm_its_own():
    x = channels_last(torch.randn(4, 6, 3, 2).double())
    rows = torch.randn(2, 12).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: group_norm_mod(x, rows, 3), (rows,))
    latents, *rest = (t.double() for t in mapped(4, 4, 6, 3, 2, (1, 1), torch.float32, "cpu")[1:])
    *convs, weight, offset = rest
    affine = weight.requires_grad_(), offset.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *affine: spatial_norm_act(x, latents, convs[:2], convs[2:], affine, 3, activate=True), affine
    )
