"""Texts mixed as core's nodes mix them, without core."""

import pytest
import torch
from support.no_core import adapter
from support.tiny import CONTEXT, context, draw

from fusionframes.ff_kernels.errors import InputError

text = adapter("text")
NULL = draw(CONTEXT, seed=9)
PROMPT, MASK = context(1)
MARKED = text.mark(PROMPT, MASK, is_null=False)
EMPTY = text.mark(torch.zeros_like(PROMPT), MASK, is_null=True)


def read(tensor, null=NULL):
    return text.context_of(tensor, {}, null, CONTEXT, "positive")


def filled():
    context = torch.zeros_like(PROMPT)
    context[:, 0] = NULL
    return context


def test_a_text_comes_back_as_it_was():
    context, mask = read(MARKED)
    assert torch.equal(context, PROMPT)
    assert torch.equal(mask, MASK)


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_an_average_with_the_null_text_is_that_of_its_learned_vector(strength):
    context, mask = read(strength * EMPTY + (1 - strength) * MARKED)
    assert torch.allclose(context, strength * filled() + (1 - strength) * PROMPT, atol=1e-6)
    assert mask.tolist() == ([[1, 0, 0, 0, 0, 0]] if strength == 1 else [[1, 1, 1, 1, 1, 0]])


def test_joined_texts_keep_both_and_their_masks():
    context, mask = read(torch.cat([EMPTY, MARKED], dim=1))
    assert torch.equal(context, torch.cat([filled(), PROMPT], dim=1))
    assert mask.tolist() == [[1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0]]


def test_zeros_are_no_null_text():
    context, _ = read(torch.zeros_like(EMPTY))
    assert not context.any()


def test_null_text_wants_a_learned_vector_and_a_prompt_does_not():
    with pytest.raises(InputError, match="positive expected a null embedding in the model file"):
        read(EMPTY, None)
    assert torch.equal(read(MARKED, None)[0], PROMPT)


def test_a_text_without_marks_is_read_by_its_mask():
    context, mask = text.context_of(PROMPT, {"attention_mask": MASK}, NULL, CONTEXT, "positive")
    assert torch.equal(context, PROMPT)
    assert torch.equal(mask, MASK)


def test_another_model_s_text_is_refused():
    with pytest.raises(InputError, match=r"24 wide, got \[1, 77, 768\]"):
        read(torch.zeros(1, 77, 768))
