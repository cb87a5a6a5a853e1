"""Prompts to the text that a network reads: tokens, encoder, projection."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..models.text_encoder import project_context
from ..stages.run import Text
from ..stages.tokenizer import MAX_TOKENS, Tokenizer
from .networks import Networks


class Prompts:
    """Encodes prompts with the networks and the tokenizer of a folder."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self._tokenizer: Tokenizer | None = None

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Text:
        """Encode one prompt per clip.

        Raises:
            InputError: if a prompt is empty.
        """
        require_prompts(prompts)
        rows = [self._tokens(prompt) for prompt in prompts]
        return self._text(rows, [row.shape[1] for row in rows])

    @torch.inference_mode()
    def encode_negative(self, negatives: Sequence[str], prompts: Sequence[str]) -> Text:
        """Encode negative prompts as release 1.0 does: cut to each prompt's length, under the prompt's mask."""
        lengths = [self._tokens(prompt).shape[1] for prompt in prompts]
        rows = [self._tokenizer.encode_negative(text, n) for text, n in zip(negatives, lengths, strict=True)]
        return self._text(rows, lengths)

    def _tokens(self, prompt: str) -> Tensor:
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self.networks.models.tokenizer)
        return self._tokenizer.encode(prompt).ids

    def _text(self, rows: list[Tensor], lengths: list[int]) -> Text:
        size, device = min(max(lengths) + 1, MAX_TOKENS), self.networks.device
        ids, mask = (torch.zeros(len(rows), size, dtype=torch.long) for _ in range(2))
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[i, : row.shape[1]] = row
            mask[i, :length] = 1
        ids, mask = ids.to(device), mask.to(device)
        hidden = self.networks.get("text_encoder").network(ids, mask)
        is_bad = ~hidden.isfinite().all(dim=2).all(dim=1)
        if is_bad.any():
            # Release 1.0: a prompt whose encoding overflows becomes an empty context; we say so.
            warnings.warn("the text encoder overflowed, the prompt is ignored: use bfloat16 or float32", stacklevel=4)
            hidden, mask = torch.where(is_bad[:, None, None], 0, hidden), torch.where(is_bad[:, None], 0, mask)
        context, mask = project_context(hidden, mask, self.networks.projection())
        counted = (mask.sum(dim=1) + 1).clamp(max=MAX_TOKENS)
        return Text(context.to(self.networks.dtype), mask, counted)


def require_prompts(prompts: Sequence[str]) -> None:
    """Refuse empty prompts.

    Raises:
        InputError: if one has no text.
    """
    if not all(prompt.strip() for prompt in prompts):
        raise InputError("expected a prompt, got an empty text: describe what the video shows")
