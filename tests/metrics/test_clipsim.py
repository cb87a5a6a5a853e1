import pytest
import torch

from fusionframes.ff_kernels.errors import InputError, ShapeError
from fusionframes.ff_kernels.metrics.clipsim import clip_similarity, clipsim


def test_similarity_is_the_cosine_whatever_the_lengths():
    frames = torch.tensor([[2.0, 0.0], [0.0, 0.1], [-3.0, 0.0], [1.0, 1.0]])
    expected = torch.tensor([1, 0, -1, 0.5**0.5])
    assert torch.allclose(clip_similarity(frames, torch.tensor([5.0, 0.0])), expected)
    assert torch.allclose(clip_similarity(frames.half(), torch.tensor([[5.0, 0.0]])), expected, atol=1e-3)


def test_clipsim_encodes_in_batches():
    sizes, steps = [], []

    def encode(pictures):
        sizes.append(len(pictures))
        return pictures.mean((2, 3))

    frames = torch.rand(5, 3, 4, 4)
    found = clipsim(
        frames, "a red car", encode, lambda text: torch.ones(3), batch=2, progress=lambda *s: steps.append(s)
    )
    assert sizes == [2, 2, 1]
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert torch.allclose(found, clip_similarity(frames.mean((2, 3)), torch.ones(3)))


@pytest.mark.parametrize(
    ("frames", "prompt", "match"),
    [
        (torch.ones(4, 3), torch.ones(2), r"got \[4, 3\] and \[2\]"),
        (torch.ones(3), torch.ones(3), r"got \[3\] and \[3\]"),
        (torch.ones(4, 3), torch.ones(2, 3), r"and \[2, 3\]"),
    ],
)
def test_wrong_shapes_are_named(frames, prompt, match):
    with pytest.raises(ShapeError, match=match):
        clip_similarity(frames, prompt)


def test_wrong_values_are_named():
    with pytest.raises(InputError, match="finite frame embeddings"):
        clip_similarity(torch.zeros(2, 3), torch.ones(3))
    with pytest.raises(InputError, match="finite prompt embeddings"):
        clip_similarity(torch.ones(2, 3), torch.full((3,), torch.nan))
    with pytest.raises(InputError, match="empty text"):
        clipsim(torch.rand(2, 3, 4, 4), " ", torch.clone, torch.clone)
    with pytest.raises(ShapeError, match=r"expected 2 frame embeddings, got \[1, 3\]"):
        clipsim(torch.rand(2, 3, 4, 4), "car", lambda x: torch.ones(1, 3), lambda text: torch.ones(3))
