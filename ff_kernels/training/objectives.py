"""What fine-tuning minimises: the paper's losses on latents and contexts that are worked out already.

B clips, T keyframes, G gaps, L tokens, h and w latent sides.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..models.conditions import Conditions
from ..models.interpolation_unet import InterpolationUNet
from ..models.keyframe_unet import KeyframeUNet, keyframe_positions
from ..models.text_encoder import NULL_TOKENS_V10, null_context
from ..models.unet import UNet
from .losses import noise_error, velocity_error


class _Tuning(nn.Module):
    """A U-Net whose text is a context already; what is frozen of it is read without a gradient."""

    def __init__(self, unet: UNet, null_embedding: Tensor) -> None:
        super().__init__()
        self.unet = unet
        self.register_buffer("null_embedding", null_embedding.float(), persistent=False)
        # Entered while conditions are prepared: brings what only they need.
        self.conditioner: Callable[[], AbstractContextManager] = nullcontext

    def place(self, device: torch.device, *, parks: bool) -> None:
        """Move to a device; ``parks`` keeps what only ``prepare`` reads in memory and brings it there for each step."""
        self.to(device)
        if parks:
            for module in self.unet.conditioner_modules():
                module.cpu()
            self.conditioner = partial(_brought, self.unet.conditioner_modules(), device)

    def prepared(self, context: Tensor, *args: Any, **options: Any) -> Conditions:
        """Return what ``prepare`` returns; without a gradient where nothing that it reads trains."""
        trains = any(p.requires_grad for m in self.unet.conditioner_modules() for p in m.parameters())
        with torch.set_grad_enabled(trains), self.conditioner():
            return self.unet.prepare(context.to(self.unet.in_layer.weight.dtype), *args, **options)

    def text(self, context: Tensor, mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Put the null text in the place of rows where ``keep`` ``[B]`` is 0."""
        null, null_mask = null_context(self.null_embedding.to(context), *mask.shape)
        return torch.where(keep[:, None, None] > 0, context, null), torch.where(keep[:, None] > 0, mask, null_mask)

    def predict(self, x: Tensor, conditions: Conditions) -> Tensor:
        """Run the network on samples ``[N, C, h, w]`` and return float32."""
        x = x.to(self.unet.in_layer.weight.dtype, memory_format=torch.channels_last)
        return self.unet(x, conditions).float()


class KeyframeTuning(_Tuning):
    """Keyframes and caption to the noise in them (paper section 4.1): ``mean |eps - eps_theta|^2``.

    Args:
        unet: keyframe U-Net of either release.
        null_embedding: ``[D]``.
        max_weight: errors weigh as 1 / alpha_bar up to this; 1 is the paper's plain loss.
    """

    unet: KeyframeUNet

    def __init__(self, unet: KeyframeUNet, null_embedding: Tensor, max_weight: float = 1.0) -> None:
        super().__init__(unet, null_embedding)
        self.max_weight = max_weight

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        context: Tensor,
        mask: Tensor,
        lengths: Tensor,
        keep: Tensor,
        timesteps: Tensor,
        alpha_bar: Tensor,
        *first_frame: Tensor,
    ) -> Tensor:
        """Return the weighted error of the noise predicted for ``latents`` ``[B, T, 4, h, w]``.

        Args:
            latents: clean keyframes.
            noise: as ``latents``.
            context: ``[B, L, D]`` captions.
            mask: ``[B, L]``.
            lengths: ``[B]`` what the pooling mean divides by.
            keep: ``[B]``, 0 where the null text takes the caption's place.
            timesteps: ``[B]``.
            alpha_bar: ``[B]`` cumulative alpha at each.
            *first_frame: release 1.1: condition ``[B, T, 5, h, w]``, noise level ``[B]``, motion score ``[B]``.
        """
        B, T = latents.shape[:2]
        bar = alpha_bar[:, None, None, None, None]
        x, options = bar.sqrt() * latents + (1 - bar).sqrt() * noise, {}
        if first_frame:
            condition, level, score = first_frame
            x, options = torch.cat([x, condition], dim=2), {"noise_level": level, "motion_score": score}
        context, mask = self.text(context, mask, keep)
        positions = keyframe_positions(self.unet.config.family, T)
        conditions = self.prepared(
            context, mask, timesteps[None], lengths=lengths, positions=positions, keyframes=T, **options
        )
        out = self.predict(x.flatten(0, 1), conditions).unflatten(0, (B, T))
        return noise_error(out, noise, alpha_bar, self.max_weight).mean()


class GapTuning(_Tuning):
    """Noisy gap frames between two keyframes to v of the gap frames (paper section 4.3).

    Args:
        unet: interpolation U-Net of either release.
        null_embedding: ``[D]``.
        min_weight: errors weigh as 1 - alpha_bar down to this; 1 is the paper's plain loss.
    """

    unet: InterpolationUNet

    def __init__(self, unet: InterpolationUNet, null_embedding: Tensor, min_weight: float = 1.0) -> None:
        super().__init__(unet, null_embedding)
        self.min_weight = min_weight

    def forward(
        self,
        keyframes: Tensor,
        inner: Tensor,
        noise: Tensor,
        context: Tensor,
        mask: Tensor,
        lengths: Tensor,
        keep: Tensor,
        skip_frames: Tensor,
        noise_level: Tensor,
        timesteps: Tensor,
        alpha_bar: Tensor,
    ) -> Tensor:
        """Return the weighted v-error of ``inner [B, G, 12, h, w]`` between ``keyframes [B, G + 1, 4, h, w]``.

        Where ``keep`` is 0 neither the keyframes are shown nor, in release 1.1, text and mixing over time.
        """
        B, G = inner.shape[:2]
        if self.unet.config.family == "1.0":
            context, mask = null_context(self.null_embedding, B, NULL_TOKENS_V10)
            lengths, options = None, {}
        else:
            context, mask = self.text(context, mask, keep)
            options = {"merge": keep}
        conditions = self.prepared(
            context, mask, timesteps[None], lengths=lengths, num_gaps=G, skip_frames=skip_frames,
            noise_level=noise_level, **options,
        )  # fmt: skip
        bar = alpha_bar[:, None, None, None, None]
        ends = keyframes * keep[:, None, None, None, None]
        x = torch.cat([ends[:, :-1], bar.sqrt() * inner + (1 - bar).sqrt() * noise, ends[:, 1:]], dim=2)
        out = self.predict(x.flatten(0, 1), conditions).unflatten(0, (B, G))
        return velocity_error(out, inner, noise, alpha_bar, self.min_weight).mean()


@contextmanager
def _brought(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Hold copies of frozen parameters on a device; the parameters themselves wait where they are."""
    kept = [(parameter, parameter.data) for module in modules for parameter in module.parameters()]
    for parameter, data in kept:
        parameter.data = data.to(device)
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def checkpoint_blocks(unet: UNet) -> int:
    """Let every block run a second time in the backward pass instead of keeping what is inside; return their number."""
    blocks = [
        block
        for level in (*unet.down_samples, *unet.up_samples)
        for block in (
            level.self_attention_block, level.temporal_attention_block,
            *(part for unit in level.resnet_attn_blocks for part in unit),
        )
        if not isinstance(block, nn.Identity)
    ]  # fmt: skip
    for block in blocks:
        # Nothing in a block draws random numbers.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    return len(blocks)
