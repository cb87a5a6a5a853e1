import pytest
import torch

from fusionframes.ff_kernels.demo.start.least_squares import fit_affine


def examples(count=50):
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return inputs, inputs @ torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0]]) + torch.tensor([5.0, -4.0])


@pytest.mark.parametrize("ridge", [0.0, 1e-9])
def test_fit_affine_finds_map_and_offset(ridge):
    solution = fit_affine(*examples(), ridge=ridge)
    wanted = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0], [5.0, -4.0]]).double()
    assert torch.allclose(solution, wanted, atol=1e-5)


def test_fit_affine_leaves_the_offset_alone_when_the_map_is_penalised():
    inputs, outputs = examples()
    solution = fit_affine(inputs, outputs, ridge=1e9)
    assert solution[:-1].abs().max() < 1e-5
    assert torch.allclose(solution[-1], outputs.mean(dim=0).double(), atol=1e-4)


def test_fit_affine_with_fewer_examples_than_unknowns_takes_the_smallest_map_that_fits():
    inputs, outputs = examples(2)
    solution = fit_affine(inputs, outputs)
    assert torch.allclose(inputs.double() @ solution[:-1] + solution[-1], outputs.double(), atol=1e-5)
    assert solution.square().sum() < 50


def test_fit_affine_follows_the_examples_that_weigh_more():
    inputs, outputs = examples()
    outputs[0] += 10
    weights = torch.ones(50)
    weights[0] = 1e4
    solution = fit_affine(inputs, outputs, weights=weights)
    assert torch.allclose(inputs[0].double() @ solution[:-1] + solution[-1], outputs[0].double(), atol=1e-3)
