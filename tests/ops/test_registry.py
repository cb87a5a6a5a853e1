import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusionframes
from fusionframes.ff_kernels.errors import NoBackendError
from fusionframes.ff_kernels.ops import attend_over_time, group_norm_mod, linear, registry
from fusionframes.ff_kernels.ops.attention import _attend_over_time
from fusionframes.ff_kernels.ops.norm import _group_norm_mod
from fusionframes.ff_kernels.ops.registry import choose, describe_backends, refusals, use_backend

# Serve processors, where the vendor's library leaves most to gain.
FOR_PROCESSORS = {"nearest_conv", "residual_conv", "winograd_conv"}
OPS = {"attend_over_time", "group_norm_mod", "linear", "sample_step", "spatial_norm_act"} | FOR_PROCESSORS


@pytest.fixture
def norm_args():
    x = torch.randn(2, 16, 3, 4).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(1, 32), 8, False, False, 1e-5


def test_every_operation_is_described_for_every_backend():
    rows = describe_backends()
    assert {name for name, _, _ in rows} == OPS
    assert [backend for name, backend, _ in rows if name == "linear"] == list(registry.BACKENDS)
    states = {(name, backend): state for name, backend, state in rows}
    assert all(states[name, "eager"] == "serves every call" for name in OPS)
    assert states["attend_over_time", "cpu"] == "has none"
    assert "x is float32" in states["group_norm_mod", "cpu"]


def test_every_operation_has_a_kernel_where_triton_runs(triton_backend):
    kernels = [(name, state) for name, backend, state in describe_backends() if backend == "triton"]
    assert all(("cuda" in state.lower()) is (name not in FOR_PROCESSORS) for name, state in kernels)


def test_cpu_calls_never_reach_the_interpreter_unasked(norm_args):
    assert choose(_group_norm_mod, norm_args).backend == "cpu"
    assert choose(_group_norm_mod, (norm_args[0].double(), *norm_args[1:])).backend == "eager"


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_use_backend_forces_inside_the_block_only(backend, norm_args):
    before = choose(_group_norm_mod, norm_args).backend
    with use_backend(backend):
        assert choose(_group_norm_mod, norm_args).backend == backend
        with use_backend(None):
            assert choose(_group_norm_mod, norm_args).backend == before
    assert choose(_group_norm_mod, norm_args).backend == before


def test_use_backend_gives_the_choice_back_after_an_error(norm_args):
    with pytest.raises(KeyError), use_backend("eager"):
        raise KeyError
    assert registry.forced_backend() is None


def test_variable_forces_and_the_block_wins(monkeypatch, norm_args):
    monkeypatch.setenv(registry.VARIABLE, "eager")
    assert choose(_group_norm_mod, norm_args).backend == "eager"
    with use_backend("cpu"):
        assert choose(_group_norm_mod, norm_args).backend == "cpu"


def test_unknown_backends_are_named_with_the_known_ones(monkeypatch):
    with (
        pytest.raises(NoBackendError, match="use_backend expected one of triton, cpu, eager, got 'cuda'"),
        use_backend("cuda"),
    ):
        pass
    monkeypatch.setenv(registry.VARIABLE, "fast")
    with pytest.raises(NoBackendError, match="FUSIONFRAMES_BACKEND expected one of triton, cpu, eager, got 'fast'"):
        registry.forced_backend()


def test_error_of_a_forced_backend_names_every_refusal(norm_args):
    args = (norm_args[0].double().contiguous(), *norm_args[1:])
    expected = refusals(_group_norm_mod, "cpu", args)
    assert expected == ["x is float32", "x is channels-last in memory"]
    with use_backend("cpu"), pytest.raises(NoBackendError) as caught:
        choose(_group_norm_mod, args)
    assert all(reason in str(caught.value) for reason in expected)
    assert registry.VARIABLE in str(caught.value)


def test_an_operation_that_a_backend_lacks_is_computed_by_its_formula():
    with use_backend("cpu"):
        assert choose(_attend_over_time, (torch.randn(1, 5, 3, 32),) * 3 + (2,)).backend == "eager"


def test_missing_triton_is_the_reason(monkeypatch, norm_args):
    monkeypatch.setattr(registry, "_why_no_triton", lambda interpreting: "no CUDA device was found")
    assert refusals(_group_norm_mod, "triton", norm_args) == ["no CUDA device was found"]
    with use_backend("triton"), pytest.raises(NoBackendError, match="needs: no CUDA device was found"):
        choose(_group_norm_mod, norm_args)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_results_have_gradients_where_they_are_wanted(backend):
    with torch.enable_grad(), use_backend(backend):
        x = torch.randn(2, 16, 3, 4, requires_grad=True)
        rows = torch.randn(1, 32, requires_grad=True)
        group_norm_mod(x, rows, 8, activate=True).square().sum().backward()
        assert x.grad.abs().sum() > 0
        assert rows.grad.abs().sum() > 0
        weight = torch.randn(4, 8, requires_grad=True)
        linear(torch.randn(3, 8), weight, activate=True).sum().backward()
        assert weight.grad.abs().sum() > 0
        query = torch.randn(1, 5, 3, 32, requires_grad=True)
        attend_over_time(query, query, query, 2).square().sum().backward()
        assert query.grad.abs().sum() > 0


TWO_COPIES = """
import torch
from fusionframes.ff_kernels.ops import registry as first, group_norm_mod as norm
from second_name.ff_kernels.ops import registry as second, group_norm_mod as other
assert first.NAMESPACE == "fusionframes" and second.NAMESPACE != first.NAMESPACE, second.NAMESPACE
assert first.OPERATIONS.keys() == second.OPERATIONS.keys()
x = torch.randn(2, 16, 3, 4).contiguous(memory_format=torch.channels_last)
rows = torch.randn(1, 32)
backends = [b for b in first.BACKENDS if first.unavailable(b) is None and (b != "triton" or first.is_interpreting())]
for backend in backends:
    with first.use_backend(backend):
        a = norm(x, rows, 8)
        assert second.forced_backend() is None
    with second.use_backend(backend):
        b = other(x, rows, 8)
    assert torch.equal(a, b) and a.abs().sum() > 0
    args = (x, rows, 8, False, False, 1e-5)
    for registry in (first, second):
        operation = registry.OPERATIONS["group_norm_mod"]
        assert operation.implementations[backend].function.__module__.startswith(
            registry.__name__.partition(".")[0]), backend
print(" ".join(backends))
"""


def test_two_copies_under_two_names_work_side_by_side(tmp_path):
    package = Path(fusionframes.__file__).resolve().parent
    (tmp_path / "fusionframes").symlink_to(package)
    (tmp_path / "second_name").symlink_to(package)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TWO_COPIES], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"cpu", "eager"} <= set(done.stdout.split())
