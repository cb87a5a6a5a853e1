"""Tokenizer, T5 encoder and text projection as core's CLIP."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...ff_kernels.checkpoints.loading import cast_tensors
from ...ff_kernels.errors import InputError
from ...ff_kernels.models.configs import TextConfig
from ...ff_kernels.models.text_encoder import TextEncoder, TextProjection, project_context
from ...ff_kernels.stages.tokenizer import MAX_TOKENS, Tokenizer
from .._compat import ClipTarget, CoreCLIP, manual_cast, set_factory
from .files import Weights
from .latent import NULL

Tokens = dict[str, Any]
KEY = "fusionframes"


class CoreTokenizer:
    """Prompt to tokens; prompts are read as they stand, without weights in parentheses, as the releases do."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> Tokens:
        """Return ids, the number of dropped tokens, and whether the prompt is empty, which means the null text."""
        tokens = self.tokenizer.encode(text, warns=False)
        return {KEY: tokens.ids, "dropped": tokens.dropped, "is_null": not text.strip()}

    def tokenize_negative(self, text: str, length: int) -> Tokens:
        """Return a negative prompt cut to its prompt's length, as release 1.0 does."""
        return {KEY: self.tokenizer.encode_negative(text, length), "dropped": 0, "is_null": False}

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing to save: the tokenizer is a file beside the encoder."""
        return {}


class CoreTextModel(nn.Module):
    """Text encoder and projection behind the calls that core makes."""

    def __init__(
        self, config: TextConfig, outputs: int, *, dtype: torch.dtype, device: Any, model_options: Any = None
    ) -> None:
        super().__init__()
        operations = (model_options or {}).get("custom_operations") or manual_cast
        self.encoder = TextEncoder(config, operations=operations, device=device, dtype=dtype)
        self.projection = TextProjection(config.d_model, outputs, operations=operations, device=device, dtype=dtype)
        self.eval().requires_grad_(False)
        self.dtypes = {dtype}
        self.execution_device: Any = None

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Take core's options; layers cannot be chosen."""
        if options.get("layer") is not None:
            raise InputError(
                "clip expected the last layer, got one chosen by CLIP Set Last Layer: this encoder is trained for its "
                "last layer, remove that node"
            )
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self) -> None:
        """Forget core's options."""
        self.execution_device = None

    @torch.inference_mode()
    def encode_token_weights(self, tokens: Tokens) -> tuple[Tensor, None, dict[str, Any]]:
        """Return context ``[1, L, D]``, no pooled text, and its mask for the conditioning."""
        device = self.execution_device or self.encoder.shared.weight.device
        ids = tokens[KEY].to(device)
        # One zero token after the prompt counts in the pooling mean of the U-Nets; see ``project_context``.
        padding = min(1, MAX_TOKENS - ids.shape[1])
        mask = torch.ones_like(ids)
        ids, mask = (nn.functional.pad(t, (0, padding)) for t in (ids, mask))
        hidden = self.encoder(ids, mask)
        if not torch.isfinite(hidden).all():
            raise InputError("clip expected finite values, got an overflow in the text encoder: load it as bfloat16")
        context, mask = project_context(hidden, mask, self.projection)
        return context.float(), None, {"attention_mask": mask, NULL: tokens["is_null"]}

    def load_sd(self, tensors: dict[str, Tensor]) -> Any:
        """Fill in the weights."""
        return self.load_state_dict(tensors, strict=True, assign=getattr(self, "can_assign_sd", False))


def load_clip(
    weights: Weights,
    projection: TextProjection,
    tokenizer: Tokenizer,
    dtype: torch.dtype | None,
    disable_dynamic: bool = False,
) -> CoreCLIP:
    """Return core's CLIP of an opened text encoder.

    Args:
        weights: the encoder.
        projection: to the U-Nets' context.
        tokenizer: the encoder's own.
        dtype: dtype of the weights, None for bfloat16 or float32 as stored.
        disable_dynamic: core's wish for a patcher without paging.

    Raises:
        InputError: if encoder and projection do not fit each other.
    """
    outputs, inputs = projection[0].weight.shape
    config = weights.kind.config
    if inputs != config.d_model:
        raise InputError(
            f"projection expected a text encoder {inputs} wide, got one of {config.d_model} in '{weights.path.name}': "
            "choose encoder and projection of the same release"
        )
    # Float16 overflows at the size of Flan-UL2.
    stored = torch.bfloat16 if weights.dtype == torch.float16 and config.d_model >= 1024 else weights.dtype
    chosen = dtype or (torch.float32 if stored == torch.float16 else stored)
    parts = {"encoder": weights.tensors, "projection": projection.state_dict()}
    tensors = {
        f"{name}.{key}": value
        for name, part in parts.items()
        for key, value in cast_tensors(part, "cpu", chosen).items()
    }

    def model(**options: Any) -> CoreTextModel:
        return CoreTextModel(config, outputs, **options)

    clip = CoreCLIP(
        ClipTarget(_constant(CoreTokenizer(tokenizer)), model),
        parameters=weights.parameters,
        state_dict=[tensors],
        model_options={"dtype": chosen},
    )
    set_factory(clip.patcher, _patcher, weights, projection, tokenizer, dtype)
    return clip


def _constant(value: Any) -> Callable[..., Any]:
    return lambda **_: value


def _patcher(*args: Any, disable_dynamic: bool = False) -> Any:
    return load_clip(*args).patcher
