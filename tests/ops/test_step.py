import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.compare import assert_as_good_as_formula

from fusionframes.ff_kernels.errors import NoBackendError
from fusionframes.ff_kernels.ops import sample_step
from fusionframes.ff_kernels.ops.registry import use_backend
from fusionframes.ff_kernels.ops.step import _sample_step

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
WEIGHTS = {1: [1.0], 2: [8.0, -7.0], 3: [4.0, 0.25, -3.25], 4: [1.5, 2.0, -3.0, 0.5]}


def inputs(shape, branches, dtype, device):
    predictions = torch.randn(branches * shape[0], *shape[1:]).to(device, dtype)
    coefficients = torch.tensor([0.3, 0.95, 0.2, 0.8, 0.1], device=device)
    return predictions, torch.randn(shape).to(device), torch.randn(shape).to(device), coefficients


def limited(x, ratio):
    """Result of the kernel for samples that are their own x0 estimate, and of the formula."""
    args = (x, x, None, torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], device=x.device), [1.0], "denoised", "quantile", ratio)
    return _sample_step(*args)[1], _sample_step.formula(*args)[1]


@dtypes
@pytest.mark.parametrize("branches", WEIGHTS)
@pytest.mark.parametrize("threshold", ["quantile", "range", "none"])
@pytest.mark.parametrize("predicted", ["eps", "v", "denoised"])
def test_step_is_as_exact_as_the_formula(predicted, threshold, branches, dtype, device, triton_backend):
    args = (*inputs((2, 4, 5, 7), branches, dtype, device), WEIGHTS[branches], predicted, threshold, 0.98)
    exact = _sample_step.formula(*(a.double() if isinstance(a, torch.Tensor) else a for a in args))
    for got, formula, truth in zip(_sample_step(*args), _sample_step.formula(*args), exact, strict=True):
        assert_as_good_as_formula(got, formula, truth)
        # Every operation rounds as in the formula.
        assert torch.equal(got, formula)


@pytest.mark.parametrize("threshold", ["quantile", "none"])
def test_step_without_noise_equals_the_formula(threshold, device, triton_backend):
    predictions, x, _, coefficients = inputs((3, 4, 3, 3), 2, torch.float16, device)
    args = (predictions, x, None, coefficients, WEIGHTS[2], "eps", threshold, 0.98)
    assert all(torch.equal(*pair) for pair in zip(_sample_step(*args), _sample_step.formula(*args), strict=True))


@pytest.mark.parametrize("threshold", ["quantile", "range"])
def test_predictions_may_lie_otherwise_than_the_samples(threshold, device, triton_backend):
    predictions, x, noise, coefficients = inputs((2, 4, 5, 7), 2, torch.float16, device)
    last = predictions.contiguous(memory_format=torch.channels_last)
    samples_last = x.contiguous(memory_format=torch.channels_last)
    for p, sample in ((last, x), (predictions, samples_last), (last, samples_last)):
        args = (p, sample, noise, coefficients, WEIGHTS[2], "v", threshold, 0.98)
        for got, formula in zip(_sample_step(*args), _sample_step.formula(*args), strict=True):
            assert torch.equal(got, formula)
            assert got.stride() == sample.stride()


SAMPLES = {
    "one_element": torch.tensor([[5.0]]),
    "two_elements": torch.tensor([[-3.0, 2.0]]),
    "all_equal": torch.full((2, 50), 3.0),
    "ties_around_the_rank": torch.tensor([[1.5] * 30 + [2.5] * 40 + [-2.5] * 30, [0.5] * 60 + [-4.0] * 40]),
    "all_below_one": torch.linspace(-0.9, 0.9, 77)[None],
    "limit_between_below_and_above_one": torch.tensor([[0.5, 1.75]]),
    "zeros_and_negative_zeros": torch.tensor([[0.0, -0.0, 0.0, -2.0]]),
    "neighbouring_numbers": torch.tensor([[2.0, 2.0000002, 2.0000005, 2.0000007]]),
    "huge": torch.tensor([[1e38, -3e38, 1.0, 2.0]]),
    "more_than_a_tile": torch.cat([torch.linspace(-9, 9, 8192), torch.full((9,), 7.0)])[None],
}


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.98, 0.995, 1.0])
@pytest.mark.parametrize("name", SAMPLES)
def test_quantile_limit_equals_that_of_torch_to_the_last_bit(name, ratio, device, triton_backend):
    got, formula = limited(SAMPLES[name].to(device), ratio)
    assert torch.equal(got, formula)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40), st.floats(0, 1))
def test_quantile_limit_of_any_sample_equals_that_of_torch(device, triton_backend, values, ratio):
    got, formula = limited(torch.tensor([values], device=device), ratio)
    assert torch.equal(got, formula)


@pytest.mark.parametrize("threshold", ["quantile", "range", "none"])
def test_not_a_number_stays_one_and_only_in_its_sample(threshold, device, triton_backend):
    x = torch.tensor([[1.0, float("nan"), 3.0], [1.0, 2.0, 3.0]], device=device)
    args = (x, x, None, torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], device=device), [1.0], "denoised", threshold, 0.5)
    for got, formula in zip(_sample_step(*args), _sample_step.formula(*args), strict=True):
        assert torch.equal(got.isnan(), formula.isnan())
        assert torch.equal(got[1], formula[1])
        assert got[0].isnan().any()


def test_forced_kernel_names_what_it_needs(device, triton_backend):
    predictions, x, noise, coefficients = inputs((2, 4, 5, 7), 2, torch.float16, device)
    with pytest.raises(NoBackendError, match=r"x and coefficients are float32: take"):
        sample_step(predictions, x, noise, coefficients.half(), weights=(2.0, -1.0))
    large = torch.empty(1, 12 * 128 * 128 + 1, device=device)
    with pytest.raises(NoBackendError, match=r"at most 196608 elements: take"):
        sample_step(large, large, None, coefficients, threshold="quantile")


def test_sample_step_passes_opcheck():
    predictions, x, noise, coefficients = inputs((2, 4, 5, 7), 2, torch.float16, "cpu")
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    with use_backend("eager"):
        args = (predictions, x, noise, coefficients, WEIGHTS[2], "eps", "quantile", 0.98)
        torch.library.opcheck(_sample_step._op, args, test_utils=utils)
