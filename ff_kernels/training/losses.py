"""What each stage of the demo model is trained for: modules whose forward turns a batch into a loss."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.conditions import cut_context
from ..models.interpolation_unet import InterpolationUNet
from ..models.keyframe_unet import KeyframeUNet, keyframe_positions
from ..models.masked_unet import MaskedUNet
from ..models.movq import MoVQ
from ..models.text_encoder import NULL_TOKENS_V10, TextEncoder, TextProjection, null_context, project_context
from ..sampling.gaps import masked_groups

LATENT_NOISE = 0.02
# Errors of v weigh as errors of the estimated frames do, down to this factor: the nearly clean steps have by far
# the largest v-error and decide nothing about where things are.
MIN_WEIGHT = 0.05
# Errors of the predicted noise weigh as errors of v = eps / sqrt(a) do, up to this factor. Without a cap the noisiest
# steps, which can only guess, drown the others, and shapes are not learnt. Clips that are not what is asked for are not
# capped: they leave little to guess.
MAX_WEIGHT = 10.0
# How much more than its share in the error the difference of a pair of lessons weighs: what tells opposite captions
# apart is a tenth of the error or less, and at a weight of one it was not learnt.
CONTRAST = 8.0


class Reconstruction(nn.Module):
    """Frames through MoVQ and back: L1, L1 of the image gradients, and latents kept near -1..1.

    The 1.0 sampler clips its estimate at the larger of 1 and the 98 % quantile, so latents beyond that range
    could not be drawn. A little noise on the latents teaches the decoder to forgive the sampler's errors.
    """

    def __init__(self, movq: MoVQ) -> None:
        super().__init__()
        self.movq = movq

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the loss of ``pixels`` ``[N, 3, H, W]`` in -1..1."""
        dtype = self.movq.quant_conv.weight.dtype
        latents = self.movq.encode(pixels.to(dtype, memory_format=torch.channels_last)).float()
        noisy = latents + LATENT_NOISE * torch.randn_like(latents)
        out = self.movq.decode(noisy.to(dtype), frames=1).float()
        spread = (latents.std() - 0.5).square() + F.relu(latents.abs() - 1).square().mean()
        return picture_error(out, pixels) + 0.1 * spread


class FrozenEncoder(nn.Module):
    """Latents of a clip to its frames, for a decoder over a frozen encoder (paper section 4.4).

    ``squared`` weighs the squares of errors beside their sizes: few large ones decide the PSNR.
    """

    def __init__(self, movq: MoVQ, squared: float = 0.0) -> None:
        super().__init__()
        self.movq, self.squared = movq, squared
        for part in (movq.encoder, movq.quant_conv):
            part.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the loss of ``pixels`` ``[B, T, 3, H, W]`` in -1..1."""
        dtype = self.movq.quant_conv.weight.dtype
        frames = pixels.flatten(0, 1)
        with torch.no_grad():
            latents = self.movq.encode(frames.to(dtype, memory_format=torch.channels_last)).float()
        noisy = latents + LATENT_NOISE * torch.randn_like(latents)
        out = self.movq.decode(noisy.to(dtype), frames=pixels.shape[1]).float()
        return picture_error(out, frames, self.squared)


class KeyframeNoise(nn.Module):
    """Keyframes and caption to the noise in them; trains text encoder, projection, null embedding and U-Net."""

    def __init__(self, encoder: TextEncoder, projection: TextProjection, unet: KeyframeUNet) -> None:
        super().__init__()
        self.text = nn.ModuleDict({"encoder": encoder, "projection": projection})
        self.null_embedding = nn.Parameter(torch.zeros(unet.config.context_dim))
        self.unet = unet

    def context(self, ids: Tensor, mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Encode captions; where ``keep`` is 0 the null embedding takes the caption's place."""
        hidden = self.text["encoder"](ids, mask)
        context, mask = project_context(hidden, mask, self.text["projection"])
        null, null_mask = null_context(self.null_embedding, *mask.shape)
        return torch.where(keep[:, None, None], context, null), torch.where(keep[:, None], mask, null_mask)

    def pooled(self, ids: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        """Return ``[B, E]``, the pooled text that the U-Net adds to its time."""
        context, mask = self.context(ids, mask, keep)
        return self.unet.feature_pooling(context, None, *cut_context(context, mask))

    def vectors(self, ids: Tensor, mask: Tensor, keep: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``[B, E]``: time and pooled text of each caption after SiLU, as the norms of the U-Net read them."""
        time = self.unet.embed(self.unet.to_time_embed, timesteps, self.null_embedding)
        return F.silu(time + self.pooled(ids, mask, keep))

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        ids: Tensor,
        mask: Tensor,
        keep: Tensor,
        timesteps: Tensor,
        alpha_bar: Tensor,
        shown: Tensor | None = None,
        opposite: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted error of the noise predicted for ``latents`` ``[B, T, 4, h, w]``.

        With ``shown``, as ``latents``, the network sees those clips under the noise, and what it should take for noise
        is what leaves ``latents`` as the estimated clip all the same: the caption says so.

        ``opposite`` ``[B]`` says how many rows further on a clip's opposite is, 0 where it has none; both are under
        the same noise, and the error of their difference weighs more.
        """
        dtype = self.null_embedding.dtype
        B, T = latents.shape[:2]
        context, mask = self.context(ids, mask, keep)
        conditions = self.unet.prepare(
            context, mask, timesteps[None], positions=keyframe_positions("1.0", T), keyframes=T
        )
        bar = alpha_bar[:, None, None, None, None]
        shown = latents if shown is None else shown
        x = bar.sqrt() * shown + (1 - bar).sqrt() * noise
        target = noise + (bar / (1 - bar)).sqrt() * (shown - latents)
        x = x.flatten(0, 1).to(dtype, memory_format=torch.channels_last)
        out = self.unet(x, conditions).float().unflatten(0, (B, T))
        wrong = out - target
        error = wrong.square().mean(dim=(1, 2, 3, 4))
        if opposite is not None:
            # a^2 + b^2 = ((a + b)^2 + (a - b)^2) / 2, of which each of the two has one half.
            apart = wrong - wrong[torch.arange(B, device=wrong.device) + opposite]
            error = error + CONTRAST / 4 * apart.square().mean(dim=(1, 2, 3, 4))
        weight = 1 / alpha_bar
        # A clip that shows something else is a lesson and weighs in full.
        is_lesson = (shown != latents).flatten(1).any(dim=1)
        return (error * torch.where(is_lesson, weight, weight.clamp(max=MAX_WEIGHT))).mean()


class _GapObjective(nn.Module):
    """What both gap networks are trained with: the null text, and the error of v = sqrt(a) eps - sqrt(1 - a) x0."""

    def __init__(self, unet: InterpolationUNet | MaskedUNet) -> None:
        super().__init__()
        self.unet = unet
        self.null_embedding = nn.Parameter(torch.zeros(unet.config.context_dim))

    def _error(
        self,
        clean: Tensor,
        noise: Tensor,
        show: Callable[[Tensor], Tensor],
        skip_frames: Tensor,
        noise_level: Tensor,
        timesteps: Tensor,
        alpha_bar: Tensor,
    ) -> Tensor:
        """Return the weighted v-error of ``clean [B, G, ..., h, w]``.

        ``show`` makes samples ``[B, N, C, h, w]`` for the network of the noisy ones, adding what is known.
        """
        B, G = clean.shape[:2]
        # Release 1.0: two tokens of context, the null embedding and a zero (models/RELEASES.md,
        # "Two null tokens, whatever the prompt").
        context, mask = null_context(self.null_embedding, B, NULL_TOKENS_V10)
        conditions = self.unet.prepare(
            context, mask, timesteps[None], num_gaps=G, skip_frames=skip_frames, noise_level=noise_level
        )
        inner = tuple(range(1, clean.ndim))
        bar = alpha_bar.reshape(-1, *(1 for _ in inner))
        noisy = bar.sqrt() * clean + (1 - bar).sqrt() * noise
        x = show(noisy).flatten(0, 1).to(self.null_embedding.dtype, memory_format=torch.channels_last)
        out = self.unet(x, conditions).float().unflatten(0, clean.shape[:-3])
        return velocity_error(out, clean, noise, alpha_bar, MIN_WEIGHT).mean()


class GapVelocity(_GapObjective):
    """Noisy gap frames between two keyframes to v of the gap frames (paper section 4.3)."""

    def forward(self, keyframes: Tensor, inner: Tensor, noise: Tensor, keep: Tensor, *conditions: Tensor) -> Tensor:
        """Return the weighted v-error of ``inner [B, G, 12, h, w]`` between ``keyframes [B, G + 1, 4, h, w]``.

        ``conditions`` are the skip, the noise level, the timestep and the cumulative alpha of every clip, ``[B]`` each.
        """
        ends = keyframes * keep[:, None, None, None, None]
        return self._error(
            inner, noise, lambda noisy: torch.cat([ends[:, :-1], noisy, ends[:, 1:]], dim=2), *conditions
        )


class MaskedVelocity(_GapObjective):
    """Noisy groups of five frames, both ends shown, to v of all five: the baseline (paper, appendix 10)."""

    def forward(self, keyframes: Tensor, groups: Tensor, noise: Tensor, keep: Tensor, *conditions: Tensor) -> Tensor:
        """Return the weighted v-error of ``groups [B, G, 5, 4, h, w]`` shown ``keyframes [B, G + 1, 4, h, w]``.

        ``conditions`` as for ``GapVelocity``.
        """
        # A clip without its keyframes is shown no mask either, as in the sampler's other branch.
        shown = masked_groups(keyframes).unflatten(0, (len(groups), -1)) * keep[:, None, None, None, None]
        return self._error(groups, noise, lambda noisy: torch.cat([noisy.flatten(1, 2), shown], dim=2), *conditions)


def noise_error(out: Tensor, noise: Tensor, alpha_bar: Tensor, max_weight: float) -> Tensor:
    """Return ``[B]`` mean squared errors of predicted noise ``[B, ...]``, weighed as 1 / alpha_bar up to a limit."""
    return (out - noise).square().flatten(1).mean(dim=1) * (1 / alpha_bar).clamp(max=max_weight)


def velocity_error(out: Tensor, clean: Tensor, noise: Tensor, alpha_bar: Tensor, min_weight: float) -> Tensor:
    """Return ``[B]`` mean squared errors of v = sqrt(a) eps - sqrt(1 - a) x0, weighed as 1 - alpha_bar from a limit."""
    inner = tuple(range(1, clean.ndim))
    bar = alpha_bar.reshape(-1, *(1 for _ in inner))
    velocity = bar.sqrt() * noise - (1 - bar).sqrt() * clean
    return (out - velocity).square().mean(dim=inner) * (1 - alpha_bar).clamp(min=min_weight)


def picture_error(a: Tensor, b: Tensor, squared: float = 0.0) -> Tensor:
    """Return the L1 distance of ``[N, C, H, W]`` pictures and of their horizontal and vertical differences.

    Each of the three has ``squared`` times its mean square added.
    """
    pairs = ((a, b), (a.diff(dim=-1), b.diff(dim=-1)), (a.diff(dim=-2), b.diff(dim=-2)))
    return sum(F.l1_loss(x, y) + squared * F.mse_loss(x, y) for x, y in pairs)
