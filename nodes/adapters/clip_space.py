"""Core's CLIP and CLIP_VISION as encoders into the space that the two sides of one CLIP share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...ff_kernels.errors import InputError
from .._compat import encode_projected

_ADVICE = "load the whole file of one CLIP, such as openai/clip-vit-large-patch14, with Load CLIP and Load CLIP Vision"
# Entries of trained projections spread by about the inverse root of their width, 0.02 to 0.05.
_LEAST_SPREAD, _MOST_SPREAD = 1e-3, 0.5


def prompt_encoder(clip: Any) -> Callable[[str], Tensor]:
    """Return what encodes a text as ``[D]`` in the shared space.

    Args:
        clip: core's CLIP whose pooled text is that of one CLIP encoder (L, H or bigG).

    Raises:
        InputError: now, if it has no such encoder. When called, if the pooled text is joined from several encoders or
            the projection was not in the file.
    """
    model = getattr(clip, "cond_stage_model", None)
    modules = model.modules() if isinstance(model, nn.Module) else ()
    projections = [m.transformer.text_projection for m in modules if _is_clip_text(m)]
    if not projections:
        raise InputError(
            f"clip expected the text side of a CLIP, got {type(model or clip).__name__}, which shares no space with "
            f"pictures: {_ADVICE}"
        )

    def encode(text: str) -> Tensor:
        pooled = encode_projected(clip, clip.tokenize(text))
        width = 0 if pooled is None else pooled.shape[-1]
        used = [projection for projection in projections if projection.out_features == width]
        if not used:
            widths = " or ".join(str(projection.out_features) for projection in projections)
            raise InputError(
                f"clip expected a pooled text {widths} wide, of one CLIP, got one {width} wide, joined from several "
                f"encoders: {_ADVICE}"
            )
        if not _is_filled(used[0].weight):
            raise InputError(
                f"clip expected a text projection, found none in its file, as in checkpoints of image models: {_ADVICE}"
            )
        return pooled[0]

    return encode


def frame_encoder(clip_vision: Any) -> Callable[[Tensor], Tensor]:
    """Return what encodes pictures ``[N, 3, H, W]`` in 0..1 as ``[N, D]``: of each the middle square, as core crops it.

    Args:
        clip_vision: core's CLIP_VISION.

    Raises:
        InputError: now, if it has no projection. When called, if its file had none, which older cores do not tell.
    """
    projection = getattr(getattr(clip_vision, "model", None), "visual_projection", None)
    name = getattr(clip_vision, "model_type", type(clip_vision).__name__)
    refusal = f"clip_vision expected the image side of a CLIP with its projection, got {name} without one: {_ADVICE}"
    if not hasattr(projection, "weight"):
        raise InputError(refusal)

    def encode(pictures: Tensor) -> Tensor:
        embeddings = clip_vision.encode_image(pictures.movedim(1, -1), crop=True)["image_embeds"]
        if not _is_filled(projection.weight):
            raise InputError(refusal)
        return embeddings

    return encode


def _is_clip_text(module: nn.Module) -> bool:
    transformer = getattr(module, "transformer", None)
    return hasattr(module, "return_projected_pooled") and hasattr(transformer, "text_projection")


def _is_filled(weight: Tensor | None) -> bool:
    """Return whether a file can have filled a projection.

    Core leaves one that is not in the file empty, as the memory happens to be or, in older versions, an identity; it
    keeps no list of what was missing.
    """
    if weight is None or weight.is_meta:
        return False
    values = weight.detach().float()
    is_identity = torch.equal(values, torch.eye(*values.shape, device=values.device))
    # NaN fails both comparisons.
    return bool(_LEAST_SPREAD <= values.std() <= _MOST_SPREAD) and not is_identity
