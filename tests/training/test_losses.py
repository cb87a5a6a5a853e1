import pytest
import torch

from fusionframes.ff_kernels.demo import recipe
from fusionframes.ff_kernels.demo import steps as stages
from fusionframes.ff_kernels.models.interpolation_unet import InterpolationUNet
from fusionframes.ff_kernels.models.masked_unet import MaskedUNet
from fusionframes.ff_kernels.training import losses
from fusionframes.ff_kernels.training.initial import initialise


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


def test_keyframe_noise_of_a_perfect_network_is_zero_error_whatever_clip_is_shown():
    objective = stages.keyframe_objective()
    latents, noise, shown = torch.randn(3, 3, 5, 4, 4, 4)
    shown[:2] = latents[:2]
    bar = torch.tensor([0.3, 0.01, 0.01])
    share = bar[:, None, None, None, None]
    seen = []

    def perfect(x, conditions):
        seen.append(x.unflatten(0, (3, 5)))
        out = (seen[-1] - share.sqrt() * latents) / (1 - share).sqrt()
        return (out + error).flatten(0, 1)

    objective.unet.forward = perfect
    ids = torch.tensor([[5, 1, 0]]).expand(3, 3)
    mask = torch.tensor([[1, 1, 0]]).expand(3, 3)
    args = (ids, mask, torch.ones(3, dtype=torch.bool), torch.tensor([300, 900, 900]), bar, shown)
    error = 0.0
    assert objective(latents, noise, *args).item() == pytest.approx(0, abs=1e-10)
    assert torch.allclose(seen[0], share.sqrt() * shown + (1 - share).sqrt() * noise)
    # An error of the noise weighs as the error of v that it makes, up to a limit where there is something to guess.
    error = 0.2
    expected = (0.04 * torch.tensor([1 / 0.3, losses.MAX_WEIGHT, 1 / 0.01])).mean().item()
    assert objective(latents, noise, *args).item() == pytest.approx(expected, rel=1e-4)
    # What opposites have wrong alike weighs no more than alone; what they have wrong against each other does.
    opposite = torch.tensor([0, 1, -1])
    assert objective(latents, noise, *args, opposite).item() == pytest.approx(expected, rel=1e-4)
    error = 0.2 * torch.tensor([1.0, 1.0, -1.0])[:, None, None, None, None]
    expected += 0.04 * losses.CONTRAST * (losses.MAX_WEIGHT + 1 / 0.01) / 3
    assert objective(latents, noise, *args, opposite).item() == pytest.approx(expected, rel=1e-4)


def test_gap_velocity_of_a_perfect_network_is_zero_error():
    objective = losses.GapVelocity(initialise(InterpolationUNet(recipe.INTERPOLATION)))
    keyframes, inner, noise = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 2, 12, 4, 4), torch.randn(2, 2, 12, 4, 4)
    bar = torch.tensor([0.3, 0.8])
    wanted = bar.sqrt()[:, None, None, None, None] * noise - (1 - bar).sqrt()[:, None, None, None, None] * inner
    objective.unet.forward = lambda x, conditions: wanted.flatten(0, 1)
    args = (torch.ones(2), torch.tensor([3, 1]), torch.tensor([0, 9]), torch.tensor([20, 40]), bar)
    assert objective(keyframes, inner, noise, *args).item() == pytest.approx(0, abs=1e-10)


def test_masked_velocity_of_a_perfect_network_is_zero_error():
    objective = losses.MaskedVelocity(initialise(MaskedUNet(recipe.MASKED)))
    keyframes, groups, noise = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 2, 5, 4, 4, 4), torch.randn(2, 2, 5, 4, 4, 4)
    bar = torch.tensor([0.3, 0.8])
    share = bar[:, None, None, None, None, None]
    seen = []

    def perfect(x, conditions):
        seen.append(x)
        return (share.sqrt() * noise - (1 - share).sqrt() * groups).flatten(0, 2)

    objective.unet.forward = perfect
    args = (torch.tensor([1.0, 0.0]), torch.tensor([3, 1]), torch.tensor([0, 9]), torch.tensor([20, 40]), bar)
    assert objective(keyframes, groups, noise, *args).item() == pytest.approx(0, abs=1e-10)
    x = seen[0].unflatten(0, (2, 2, 5))
    assert torch.equal(x[0, 1, 0, 4:8], keyframes[0, 1])
    assert torch.equal(x[0, 1, 4, 4:8], keyframes[0, 2])
    assert x[0, 1, :, 8].mean(dim=(1, 2)).tolist() == [1, 0, 0, 0, 1]
    # A clip whose keyframes are dropped is shown neither frames nor mask.
    assert not x[1, :, :, 4:].any()


def test_picture_error_adds_squares_of_pixels_and_of_differences():
    a = torch.zeros(1, 1, 2, 2)
    b = torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]])
    # Pixels differ by 0 and 2, neighbours in a row by 2, neighbours in a column by nothing.
    assert losses.picture_error(a, b).item() == pytest.approx(1 + 2)
    assert losses.picture_error(a, b, squared=0.5).item() == pytest.approx(1 + 2 + 0.5 * (2 + 4))
