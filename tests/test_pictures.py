import pytest
import torch
from PIL import Image

from fusionframes.ff_kernels.pictures import fit_as_released, fit_covering


def gradient(height: int, width: int) -> torch.Tensor:
    rows, columns = torch.linspace(0, 1, height), torch.linspace(0, 1, width)
    return torch.stack([rows[:, None].expand(height, width), columns.expand(height, width),
                        torch.full((height, width), 0.5)], dim=-1)  # fmt: skip


@pytest.mark.parametrize("size", [(64, 96), (200, 60), (60, 200), (65, 97)])
def test_both_ways_give_the_size_asked_for(size):
    for fit in (fit_as_released, fit_covering):
        out = fit(gradient(*size), 32, 48)
        assert out.shape == (48, 32, 3)
        assert out.min() >= 0
        assert out.max() <= 1


def test_small_picture_lies_on_black_as_released_and_covers_when_mended():
    picture = torch.ones(20, 20, 3)
    released = fit_as_released(picture, 40, 40)
    assert released[0].sum() == 0
    assert released[20, 20].min() == 1
    assert fit_covering(picture, 40, 40).min() > 0.99


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (700, 2)])
def test_extreme_pictures_are_taken(size):
    for fit in (fit_as_released, fit_covering):
        assert fit(torch.full((*size, 3), 0.25), 16, 16).isfinite().all()


def test_released_way_is_pillow_on_truncated_bytes():
    picture = gradient(100, 80)
    image = Image.fromarray((picture * 255).byte().numpy()).resize((40, 50)).crop((0, 5, 40, 45))
    expected = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(40, 40, 3).float() / 255
    assert torch.equal(fit_as_released(picture, 40, 40), expected)


def test_fitting_picture_passes_through_unchanged_when_mended():
    picture = gradient(24, 32)
    assert torch.equal(fit_covering(picture, 32, 24), picture)
