"""Prompts to the text that a network reads: tokens, encoder, projection."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..models.text_encoder import project_context
from ..stages.run import Text
from ..stages.tokenizer import MAX_TOKENS, Tokenizer, check_unicode, pad_tokens
from .needs import text_need
from .networks import Networks
from .prompt_cache import PromptCache


class Prompts:
    """Encodes prompts with the networks and the tokenizer of a folder.

    Args:
        networks: of the folder.
        cache: folder of encoded prompts; None encodes every prompt anew.
    """

    def __init__(self, networks: Networks, cache: Path | None = None) -> None:
        self.networks = networks
        self.cache = None if cache is None else PromptCache(cache, networks.models, networks.device)
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
        ids, mask = pad_tokens(rows)
        networks = self.networks
        if self.cache is None:
            context, mask, _ = self._encoded(ids, mask)
        else:
            dtypes = (networks.dtype_of("text_encoder"), networks.dtype)
            context, mask = self.cache.get(ids, mask, dtypes, lambda: self._encoded(ids, mask))
        context, mask = context.to(networks.device), mask.to(networks.device)
        counted = (mask.sum(dim=1) + 1).clamp(max=MAX_TOKENS)
        return Text(context, mask, counted)

    def _encoded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Return context, mask and whether no encoding overflowed."""
        networks = self.networks
        ids, mask = ids.to(networks.device), mask.to(networks.device)
        dtype = networks.dtype_of("text_encoder")
        held = networks.placed("text_encoder", lambda network: text_need(network.config, len(ids), dtype))
        with held.running:
            hidden = held.network(ids, mask)
        is_bad = ~hidden.isfinite().all(dim=2).all(dim=1)
        overflows = bool(is_bad.any())
        if overflows:
            # Release 1.0: a prompt whose encoding overflows becomes an empty context; we say so.
            warnings.warn("the text encoder overflowed, the prompt is ignored: use bfloat16 or float32", stacklevel=5)
            hidden, mask = torch.where(is_bad[:, None, None], 0, hidden), torch.where(is_bad[:, None], 0, mask)
        context, mask = project_context(hidden, mask, networks.projection())
        return context.to(networks.dtype), mask, not overflows


def require_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that say nothing or cannot be read.

    Raises:
        InputError: if one has no text or is no valid Unicode.
    """
    for prompt in prompts:
        check_unicode(prompt)
    if not all(prompt.strip() for prompt in prompts):
        raise InputError("expected a prompt, got an empty text: describe what the video shows")
