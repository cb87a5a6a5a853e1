import pytest
import torch

from fusionframes.ff_kernels.demo import WEIGHTS
from fusionframes.ff_kernels.errors import CheckpointError, InputError
from fusionframes.ff_kernels.stages.tokenizer import MAX_TOKENS, Tokenizer, pad_tokens

TOKENIZER = WEIGHTS / "text_encoders" / "spiece.model"


def test_encode_ends_with_eos_and_counts_nothing_dropped():
    tokens = Tokenizer(TOKENIZER).encode("a large red circle")
    assert tokens.ids[0, -1] == 1
    assert (tokens.ids[0, :-1] > 2).all()
    assert tokens.dropped == 0


def test_encode_capitals_and_marks_read_as_plain_words():
    tokenizer = Tokenizer(TOKENIZER)
    plain = tokenizer.encode("a large red circle moves up").ids
    assert torch.equal(tokenizer.encode("A large RED circle moves up!").ids, plain)


@pytest.mark.parametrize("words", [40, 200])
def test_encode_long_prompt_is_cut_with_a_count(words):
    tokenizer = Tokenizer(TOKENIZER)
    with pytest.warns(UserWarning, match=r"the last (\d+) tokens were dropped") as caught:
        tokens = tokenizer.encode("large purple triangle " * words)
    assert tokens.ids.shape == (1, MAX_TOKENS)
    assert tokens.ids[0, -1] == 1
    assert f"the last {tokens.dropped} tokens" in str(caught[0].message)


def test_encode_negative_is_cut_to_the_positive_length():
    tokenizer = Tokenizer(TOKENIZER)
    assert tokenizer.encode_negative("a small blue square on a gray background", 4).tolist()[0][-1] == 1
    padded = tokenizer.encode_negative("red", 9)
    assert padded.shape == (1, 9)
    assert padded[0, -1] == 0


def test_tokenizer_damaged_model_is_named(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"spiece\.model"):
        Tokenizer(tmp_path / "spiece.model")
    with pytest.raises(CheckpointError, match="absent"):
        Tokenizer(tmp_path / "absent.model")


def test_prompts_of_any_lengths_share_a_batch_with_one_place_to_spare():
    ids, mask = pad_tokens([torch.tensor([[5, 1]]), torch.tensor([[7, 8, 9, 1]])])
    assert ids.tolist() == [[5, 1, 0, 0, 0], [7, 8, 9, 1, 0]]
    assert mask.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    full, _ = pad_tokens([torch.ones(1, MAX_TOKENS, dtype=torch.long)])
    assert full.shape == (1, MAX_TOKENS)


@pytest.mark.parametrize("text", ["a caf\udce9", "\ud83d circle"])
def test_prompt_with_half_a_character_is_one_sentence(text):
    tokenizer = Tokenizer(TOKENIZER)
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_negative(text, 4)):
        with pytest.raises(InputError, match=r"valid Unicode, got half a character at place \d") as error:
            encode(text)
        assert str(error.value).isascii()


def test_count_cut_is_what_encode_negative_drops():
    tokenizer = Tokenizer(TOKENIZER)
    text = "a small blue square on a gray background"
    whole = tokenizer.encode(text).ids.shape[1]
    for length in range(1, whole + 3):
        assert tokenizer.count_cut(text, length) == max(0, whole - length)
