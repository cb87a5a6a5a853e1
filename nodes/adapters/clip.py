"""Tokenizer, T5 encoder and text projection as core's CLIP."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...ff_kernels.checkpoints.detection import TIED_COPY
from ...ff_kernels.checkpoints.reading import METADATA_KEY, TOKENIZER_KEY, pack_bytes, pack_metadata
from ...ff_kernels.errors import InputError
from ...ff_kernels.models.configs import TextConfig
from ...ff_kernels.models.text_encoder import TextEncoder, TextProjection, project_context
from ...ff_kernels.stages.tokenizer import MAX_TOKENS, Tokenizer
from .._compat import ClipTarget, CoreCLIP, manual_cast, mixed_operations, put_back, set_factory
from .files import Weights
from .latent import MARKED
from .text import mark

Tokens = dict[str, Any]
KEY = "fusionframes"
# Core counts layers from the end.
LAST_LAYER = -1


class CoreTokenizer:
    """Prompt to tokens; prompts are read as they stand, without weights in parentheses, as the releases do."""

    def __init__(self, tokenizer: Tokenizer, config: TextConfig) -> None:
        self.tokenizer, self.config = tokenizer, config

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> Tokens:
        """Return ids, the number of dropped tokens, and whether the prompt is empty, which means the null text."""
        tokens = self.tokenizer.encode(text, warns=False)
        return {KEY: tokens.ids, "dropped": tokens.dropped, "is_null": not text.strip()}

    def tokenize_negative(self, text: str, length: int) -> Tokens:
        """Return a negative prompt cut to its prompt's length, as release 1.0 does, and how many tokens that drops."""
        ids, dropped = self.tokenizer.encode_negative(text, length), self.tokenizer.count_cut(text, length)
        return {KEY: ids, "dropped": dropped, "is_null": False}

    def state_dict(self) -> dict[str, Tensor]:
        """Return what core saves beside the weights: the tokenizer and what the weights do not show."""
        metadata = {"config": self.config.to_dict()}
        return {METADATA_KEY: pack_metadata(metadata), TOKENIZER_KEY: pack_bytes(self.tokenizer.content)}


class CoreTextModel(nn.Module):
    """Text encoder and projection behind the calls that core makes."""

    def __init__(
        self, config: TextConfig, outputs: int, *, dtype: torch.dtype, device: Any, model_options: Any = None
    ) -> None:
        super().__init__()
        operations = (model_options or {}).get("custom_operations") or manual_cast
        text = TextEncoder(config, operations=operations, device=device, dtype=dtype)
        # Its parts stand here under the names of the release, which are those that core saves; of the one embedding
        # that has two names only the first, as files cannot hold a tensor twice.
        del text.encoder._modules["embed_tokens"]
        text.encoder.__dict__["embed_tokens"] = text.shared
        self.shared, self.encoder = text.shared, text.encoder
        self.__dict__["text"] = text
        wide = torch.bfloat16 if is_stored_only(dtype) else dtype
        self.projection = TextProjection(config.d_model, outputs, operations=operations, device=device, dtype=wide)
        self.eval().requires_grad_(False)
        self.dtypes = {dtype}
        self.execution_device: Any = None

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Take core's options; layers cannot be chosen."""
        if options.get("layer") not in (None, LAST_LAYER):
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
        device = self.execution_device or self.shared.weight.device
        ids = tokens[KEY].to(device)
        # One zero token after the prompt counts in the pooling mean of the U-Nets; see ``project_context``.
        padding = min(1, MAX_TOKENS - ids.shape[1])
        mask = torch.ones_like(ids)
        ids, mask = (nn.functional.pad(t, (0, padding)) for t in (ids, mask))
        hidden = self.text(ids, mask)
        if not torch.isfinite(hidden).all():
            raise InputError("clip expected finite values, got an overflow in the text encoder: load it as bfloat16")
        context, mask = project_context(hidden, mask, self.projection)
        tensor = mark(context.float(), mask, is_null=tokens["is_null"])
        return tensor, None, {"attention_mask": mask, MARKED: True}

    def load_sd(self, tensors: dict[str, Tensor]) -> Any:
        """Fill in the weights."""
        assigns = getattr(self, "can_assign_sd", False) or is_stored_only(next(iter(self.dtypes)))
        result = self.load_state_dict(tensors, strict=True, assign=assigns)
        if assigns:
            put_back(self, tensors)
        return result


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
    # As they are in the files: core casts, layer by layer, and its pager reads them from there again.
    copy = TIED_COPY.removesuffix("weight")
    own = {name: tensor for name, tensor in weights.for_core(chosen).items() if not name.startswith(copy)}
    tensors = {**own, **{f"projection.{name}": tensor for name, tensor in projection.state_dict().items()}}
    operations = {"custom_operations": mixed_operations(chosen)} if weights.kept else {}

    def model(**options: Any) -> CoreTextModel:
        return CoreTextModel(config, outputs, **options)

    clip = CoreCLIP(
        ClipTarget(_constant(CoreTokenizer(tokenizer, config)), model),
        parameters=weights.parameters,
        state_dict=[tensors],
        model_options={"dtype": chosen, **operations},
    )
    set_factory(clip.patcher, _patcher, weights, projection, tokenizer, dtype)
    return clip


def is_stored_only(dtype: torch.dtype) -> bool:
    """Return whether weights can be kept in a dtype but not computed in: those of eight bits."""
    return dtype.itemsize == 1


def _constant(value: Any) -> Callable[..., Any]:
    return lambda **_: value


def _patcher(*args: Any, disable_dynamic: bool = False) -> Any:
    return load_clip(*args).patcher
