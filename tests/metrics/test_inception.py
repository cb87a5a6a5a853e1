import numpy as np
import pytest
import torch

from fusionframes.ff_kernels.errors import InputError, ShapeError
from fusionframes.ff_kernels.metrics.inception import InceptionScore, inception_score


def probabilities(count=40, classes=6):
    return torch.from_numpy(np.random.default_rng(0).dirichlet(np.full(classes, 0.3), count))


def test_score_agrees_with_the_definition_per_split():
    p = probabilities().numpy()
    scores = []
    for split in range(4):
        part = p[split::4]
        scores.append(np.exp(np.mean([np.sum(row * np.log(row / part.mean(0))) for row in part])))
    score = inception_score(torch.from_numpy(p), 4)
    assert score.mean == pytest.approx(np.mean(scores), rel=1e-9)
    assert score.deviation == pytest.approx(np.std(scores), rel=1e-9)


def test_chunks_agree_with_all_at_once():
    whole, chunked = inception_score(probabilities(), 3), InceptionScore(3)
    for part in probabilities().split(7):
        chunked.add(part)
    assert chunked.score().mean == pytest.approx(whole.mean, rel=1e-12)


def test_sure_and_even_scores_the_classes_and_unsure_scores_one():
    assert inception_score(torch.eye(5).repeat(2, 1), 1).mean == pytest.approx(5)
    assert inception_score(torch.full((10, 5), 0.2), 2).mean == pytest.approx(1)


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="logits"):
        inception_score(torch.randn(10, 3))
    with pytest.raises(InputError, match="10 splits of the IS, got 4"):
        inception_score(torch.eye(4))
    with pytest.raises(InputError, match="got 0"):
        InceptionScore(0)
    with pytest.raises(ShapeError, match=r"\[N, 4\], got \[2, 2\]"):
        InceptionScore(1).add(torch.eye(4)).add(torch.eye(2))
