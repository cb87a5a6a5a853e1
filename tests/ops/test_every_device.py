"""Every operation on a device that has kernels for nothing of ours."""

import pytest
import torch
from support import soroban

from fusionframes.ff_kernels.ops import registry
from fusionframes.ff_kernels.ops.eager.conv import nearest_kernels, winograd_taps


def channels_last(*shape):
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def arguments(name):
    x, weight, vector = channels_last(4, 16, 4, 8), torch.randn(16, 16, 3, 3), torch.randn(16)
    maps = (torch.randn(16, 4), vector, torch.randn(16, 4), vector)
    return {
        "attend_over_time": lambda: (*torch.randn(3, 2, 5, 6, 16), 2),
        "group_norm_mod": lambda: (x, torch.randn(2, 32), 8, False, True, 1e-5),
        "linear": lambda: (torch.randn(200, 16), torch.randn(24, 16), torch.randn(24), torch.randn(200, 24), True),
        "nearest_conv": lambda: (x, nearest_kernels(weight), vector),
        "residual_conv": lambda: (x, weight, vector, channels_last(4, 16, 4, 8), [1, 1]),
        "sample_step": lambda: (
            channels_last(8, 4, 4, 4), channels_last(4, 4, 4, 4), channels_last(4, 4, 4, 4), torch.rand(5) + 0.1,
            [2.0, -1.0], "eps", "quantile", 0.98,
        ),
        "spatial_norm_act": lambda: (x, torch.randn(4, 4, 2, 4), *maps, vector, vector, 8, True, 1e-6),
        "winograd_conv": lambda: (x, winograd_taps(weight), vector, None),
    }[name]()  # fmt: skip


def there(x):
    return x.to(soroban.NAME) if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize("name", registry.OPERATIONS)
def test_operation_runs_by_its_formula_on_a_device_without_kernels(name):
    operation, args = registry.OPERATIONS[name], arguments(name)
    out = operation(*map(there, args))
    expected = operation.formula(*args)
    pairs = zip(out, expected, strict=True) if isinstance(out, tuple) else [(out, expected)]
    for got, wanted in pairs:
        assert got.device.type == soroban.NAME
        assert got.stride() == wanted.stride()
        assert torch.equal(got.cpu(), wanted)


@pytest.mark.parametrize("make", [winograd_taps, nearest_kernels])
def test_weights_made_at_load_time_need_no_float64_of_the_device(make):
    weight = torch.randn(8, 8, 3, 3)
    made = make(weight.to(soroban.NAME))
    assert made.device.type == soroban.NAME
    assert torch.equal(made.cpu(), make(weight))


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda x: x.double(), "has no torch.float64"),
        (lambda x: x + torch.ones(3), "on cpu beside those on soroban"),
        (lambda x: torch.ops.mkldnn._linear_pointwise(x, x, None, "none", [], ""), "no kernel for the device soroban"),
    ],
    ids=["float64", "left on the CPU", "CPU kernel"],
)
def test_the_device_is_as_strict_as_a_real_one(call, refusal):
    with pytest.raises((TypeError, RuntimeError, NotImplementedError), match=refusal):
        call(torch.ones(3, 3).to(soroban.NAME))
