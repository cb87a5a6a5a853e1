"""Prompts to the text that a network reads: tokens, encoder, projection."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..models.text_encoder import project_context
from ..stages.run import Text
from ..stages.tokenizer import MAX_TOKENS, Tokenizer, check_unicode, pad_tokens
from .needs import text_need
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
        return self._text([self._tokens(prompt) for prompt in prompts])

    @torch.inference_mode()
    def encode_negative(self, negatives: Sequence[str], prompts: Sequence[str], *, is_mended: bool = False) -> Text:
        """Encode negative prompts as release 1.0 does: cut to each prompt's length, under the prompt's mask.

        A warning counts what is cut off; ``is_mended`` keeps each whole, under its own mask.
        """
        if is_mended:
            return self.encode(negatives)
        lengths = [self._tokens(prompt).shape[1] for prompt in prompts]
        rows = [self._tokenizer.encode_negative(text, n) for text, n in zip(negatives, lengths, strict=True)]
        for text, length in zip(negatives, lengths, strict=True):
            cut = self._tokenizer.count_cut(text, length)
            if cut:
                warnings.warn(
                    f"the negative prompt is cut to the {length} tokens of the prompt, as in release 1.0: the last "
                    f"{cut} of its {length + cut} tokens are dropped; mend the release's mistakes to keep it whole",
                    stacklevel=3,
                )
        return self._text(rows)

    def _tokens(self, prompt: str) -> Tensor:
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self.networks.models.tokenizer)
        return self._tokenizer.encode(prompt).ids

    def _text(self, rows: list[Tensor]) -> Text:
        ids, mask = (each.to(self.networks.device) for each in pad_tokens(rows))
        dtype = self.networks.dtype_of("text_encoder")
        held = self.networks.placed("text_encoder", lambda network: text_need(network.config, len(ids), dtype))
        with held.running:
            hidden = held.network(ids, mask)
        is_bad = ~hidden.isfinite().all(dim=2).all(dim=1)
        if is_bad.any():
            # Release 1.0: a prompt whose encoding overflows becomes an empty context; we say so.
            warnings.warn("the text encoder overflowed, the prompt is ignored: use bfloat16 or float32", stacklevel=4)
            hidden, mask = torch.where(is_bad[:, None, None], 0, hidden), torch.where(is_bad[:, None], 0, mask)
        context, mask = project_context(hidden, mask, self.networks.projection())
        counted = (mask.sum(dim=1) + 1).clamp(max=MAX_TOKENS)
        return Text(context.to(self.networks.dtype), mask, counted)


def require_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that say nothing or cannot be read.

    Raises:
        InputError: if one has no text or is no valid Unicode.
    """
    for prompt in prompts:
        check_unicode(prompt)
    if not all(prompt.strip() for prompt in prompts):
        raise InputError("expected a prompt, got an empty text: describe what the video shows")
