import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import TEXT, relative

from fusionframes.ff_kernels.models.text_encoder import (
    TextEncoder,
    TextProjection,
    null_context,
    project_context,
    relative_buckets,
)
from fusionframes.ff_kernels.verify.cases import fill_weights


def encode(lengths, size):
    ids = torch.arange(size).repeat(len(lengths), 1) % 50 + 3
    mask = (torch.arange(size)[None] < torch.tensor(lengths)[:, None]).long()
    hidden = fill_weights(TextEncoder(TEXT), 0)(ids * mask, mask)
    return hidden, mask


def test_padding_does_not_change_real_tokens():
    short, _ = encode([5], 6)
    long, _ = encode([5, 11], 12)
    assert relative(long[:1, :5], short[:, :5]) < 1e-5


@given(st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_project_context_is_cut_to_the_longest_plus_one(lengths):
    hidden, mask = encode(lengths, 12)
    context, cut = project_context(hidden, mask, fill_weights(TextProjection(TEXT.d_model, 10), 1))
    assert context.shape == (len(lengths), min(max(lengths) + 1, 12), 10)
    assert cut.sum(1).tolist() == lengths
    assert all((context[i, n:] == 0).all() for i, n in enumerate(lengths))


@given(st.integers(-500, 500))
def test_relative_buckets_keep_direction_and_range(offset):
    bucket = relative_buckets(torch.tensor(offset), 32, 128).item()
    assert (16 <= bucket < 32) if offset > 0 else (0 <= bucket < 16)
    if abs(offset) < 8:
        assert bucket % 16 == abs(offset)
    if abs(offset) >= 128:
        assert bucket % 16 == 15


def test_null_context_holds_the_vector_in_token_zero():
    context, mask = null_context(torch.arange(1.0, 5.0)[None], 2, 3)
    assert context[:, 0].tolist() == [[1, 2, 3, 4]] * 2
    assert (context[:, 1:] == 0).all()
    assert mask.tolist() == [[1, 0, 0]] * 2
