"""Text to token numbers with the checkpoint's own SentencePiece model."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

from ..errors import CheckpointError

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
            content = model if isinstance(model, bytes) else Path(model).read_bytes()
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (OSError, RuntimeError) as error:
            name = "the embedded tokenizer" if isinstance(model, bytes) else f"'{model}'"
            raise CheckpointError(
                f"expected a SentencePiece model in {name}, got one that cannot be read ({error}): take spiece.model "
                "from the text encoder's repository"
            ) from error

    def encode(self, text: str, max_tokens: int = MAX_TOKENS, *, warns: bool = True) -> Tokens:
        """Tokenize a prompt; one that is too long is cut, by default with a warning that counts what was dropped."""
        ids = self.processor.encode(text)
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
        ids = [*self.processor.encode(text), self.processor.eos_id()][:length]
        ids[-1] = self.processor.eos_id()
        return torch.tensor([ids + [0] * (length - len(ids))])
