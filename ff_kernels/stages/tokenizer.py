"""Text to token numbers with the checkpoint's own SentencePiece model."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

from ..errors import CheckpointError, InputError

MAX_TOKENS = 128


@dataclass(frozen=True)
class Tokens:
    """One tokenized prompt.

    Attributes:
        ids: ``[1, n]``, n = 1 .. ``MAX_TOKENS``, the last one is end-of-sentence.
        dropped: tokens that did not fit.
    """

    ids: Tensor
    dropped: int


class Tokenizer:
    """SentencePiece tokenizer of T5: no start token, end-of-sentence last.

    Args:
        model: the bytes of ``spiece.model``, or its path.

    Raises:
        CheckpointError: if it is not a SentencePiece model.
    """

    def __init__(self, model: bytes | str | Path) -> None:
        try:
            self.content = model if isinstance(model, bytes) else Path(model).read_bytes()
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=self.content)
        except (OSError, RuntimeError) as error:
            name = "the embedded tokenizer" if isinstance(model, bytes) else f"'{model}'"
            raise CheckpointError(
                f"expected a SentencePiece model in {name}, got one that cannot be read ({error}): take spiece.model "
                "from the text encoder's repository"
            ) from error

    def encode(self, text: str, max_tokens: int = MAX_TOKENS, *, warns: bool = True) -> Tokens:
        """Tokenize a prompt; one that is too long is cut, by default with a warning that counts what was dropped.

        Raises:
            InputError: if the text is no valid Unicode.
        """
        ids = self._pieces(text)
        dropped = max(0, len(ids) + 1 - max_tokens)
        if dropped and warns:
            warnings.warn(
                f"the prompt has {len(ids) + 1} tokens, {max_tokens} fit: the last {dropped} tokens were dropped",
                stacklevel=2,
            )
        return Tokens(torch.tensor([[*ids[: len(ids) - dropped], self.processor.eos_id()]]), dropped)

    def encode_negative(self, text: str, length: int) -> Tensor:
        """Tokenize a negative prompt as release 1.0 does: cut to the positive length, last token forced to end.

        Args:
            text: negative prompt.
            length: tokens of the positive prompt, end-of-sentence included.

        Returns:
            ``[1, length]``, padded with 0 where shorter; the positive mask is used for it
            (models/RELEASES.md, "Negative prompt under the prompt's mask").
        """
        ids = [*self._pieces(text)[: length - 1], self.processor.eos_id()]
        return torch.tensor([ids + [0] * (length - len(ids))])

    def count_cut(self, text: str, length: int) -> int:
        """Return how many tokens of a negative prompt ``encode_negative`` cuts off."""
        return max(0, len(self._pieces(text)) + 1 - length)

    def _pieces(self, text: str) -> list[int]:
        check_unicode(text)
        return self.processor.encode(text)


def check_unicode(text: str) -> None:
    """Refuse halves of characters, which bytes of another encoding become on their way from a terminal.

    Raises:
        InputError: naming the place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"expected a prompt in valid Unicode, got half a character at place {error.start + 1} of {len(text)}: "
            "write it again, in UTF-8"
        ) from error


def pad_tokens(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Lay prompts of any lengths into one batch, as the releases do: one more place than the longest, if it fits.

    Args:
        rows: ``[1, n]`` token numbers of each prompt.

    Returns:
        Token numbers and mask ``[B, L]``, L at most ``MAX_TOKENS``; the mask is 1 on a prompt's own tokens.
    """
    size = min(max(row.shape[1] for row in rows) + 1, MAX_TOKENS)
    ids, mask = (torch.zeros(len(rows), size, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, : row.shape[1]] = row
        mask[i, : row.shape[1]] = 1
    return ids, mask
