"""The first U-Net: noisy keyframes to noise, release 1.0 from text and 1.1 from text and a first frame."""

import torch
from torch import Tensor, nn

from .blocks import Embedding, ResNetBlock
from .conditions import Conditions, Step, combine_rows, cut_context
from .configs import MIXED_VARIANT, POSITION_UNITS_V10, check_keyframes
from .hooks import NO_HOOKS, Hooks
from .layers import Layers
from .temporal_blocks import MixedAttentionBlock, MixedConvBlock, TemporalAttentionBlock, TemporalResNetBlock
from .unet import BlockSet, UNet, expand_rows


class KeyframeBlocks(BlockSet):
    """Spatial blocks of Kandinsky 3.0 with temporal blocks between them, or temporal layers inside (paper figure 3)."""

    @property
    def is_mixed(self) -> bool:
        """Whether time is mixed by layers inside the spatial blocks, in place of blocks of its own."""
        return self.config.temporal_variant == MIXED_VARIANT

    def residual(self, inputs: int, outputs: int, resample: str | None = None) -> nn.Module:
        """Spatial residual block, with convolutions over time inside where they are mixed."""
        if not self.is_mixed:
            return super().residual(inputs, outputs, resample)
        return ResNetBlock(self.layers, self.config, (inputs, outputs), resample, MixedConvBlock)

    def self_attention(self, channels: int) -> nn.Module:
        """Attention block over positions, with attention over time inside where they are mixed."""
        if not self.is_mixed:
            return super().self_attention(channels)
        return MixedAttentionBlock(self.layers, self.config, channels)

    def temporal_residual(self, channels: int) -> nn.Module:
        """Residual block over the keyframes."""
        if self.is_mixed:
            return super().temporal_residual(channels)
        # Release 1.1 tells these norms time and position, release 1.0 the time only (golden v1*_keyframe_unet).
        rows = "time" if self.config.family == "1.0" else "both"
        return TemporalResNetBlock(self.layers, self.config, channels, rows)

    def temporal_attention(self, channels: int) -> nn.Module:
        """Attention block over the keyframes."""
        if self.is_mixed:
            return super().temporal_attention(channels)
        return TemporalAttentionBlock(self.layers, self.config, channels)


class KeyframeUNet(UNet):
    """Keyframe U-Net of release 1.0 (4 input channels) or 1.1 (noisy 4, first frame 4, mask 1)."""

    block_set = KeyframeBlocks

    def _add_embeddings(self, layers: Layers) -> None:
        config = self.config
        self.to_temporal_embed = Embedding(layers, config)
        if config.family == "1.1":
            self.image_in_layer = layers.conv(config.num_channels, config.init_channels)
        if config.noise_augmentation:
            self.temporal_noise_aug_time_encoding = Embedding(layers, config)
        if config.motion_score:
            self.temporal_motion_score_encoding = Embedding(layers, config)

    def prepare(
        self,
        context: Tensor,
        context_mask: Tensor,
        timesteps: Tensor,
        *,
        lengths: Tensor | None = None,
        positions: Tensor | None,
        keyframes: int = 1,
        frames_per_row: int | None = None,
        noise_level: Tensor | float | None = None,
        motion_score: Tensor | float | None = None,
    ) -> Conditions:
        """Work out all that depends on prompt, timestep and guidance branch, for every step of a run.

        Args:
            context: ``[R, L, D]`` projected text of each row, in the dtype to compute in.
            context_mask: ``[R, L]``, non-zero where a token is valid.
            timesteps: ``[S]`` integers told to the network, or ``[S, R]``.
            lengths: ``[R]`` tokens that count in the pooling mean; default L. Rows of several prompts are padded,
                so that each needs its own.
            positions: ``[P]`` frame positions, P = ``keyframes`` or N (0, 12, .. 168 in release 1.0; 0 .. 11 in
                1.1); None for the image mode of 1.1, in which every sample is a picture of its own.
            keyframes: keyframes per clip.
            frames_per_row: samples that share a row; default ``keyframes``. N is R times this.
            noise_level: 1.1: diffusion steps of noise on the first frame, one number or ``[R]``.
            motion_score: 1.1: 1 (still) .. 100, one number or ``[R]``.

        Source: paper section 4.1; release 1.0 and 1.1, golden ``v10_keyframe_unet``, ``v11_keyframe_unet``.
        """
        rows = context.shape[0]
        per_row = (keyframes if positions is not None else 1) if frames_per_row is None else frames_per_row
        valid, mask = cut_context(context, context_mask)
        time = self._time_vectors(timesteps, context) + self.feature_pooling(context, lengths, valid, mask)  # [S, R, E]
        vectors = {"time": time}
        if positions is not None:
            position = self.embed(self.to_temporal_embed, positions, context)  # [P, E]
            extra = self._first_frame_vectors(noise_level, motion_score, rows, context)
            if extra is not None:
                position = position.repeat(rows * per_row // position.shape[0], 1)
                position = position + extra.repeat_interleave(per_row, 0)
            vectors["position"] = position[None]
            if self.config.family == "1.1":
                vectors["both"] = combine_rows(time, position, per_row)
        return self._tables(
            valid, mask, vectors, samples=rows * per_row, clip_length=keyframes, is_temporal=positions is not None
        )

    def _first_frame_vectors(
        self, noise_level: Tensor | float | None, motion_score: Tensor | float | None, rows: int, like: Tensor
    ) -> Tensor | None:
        total = None
        for name, values in (
            ("temporal_noise_aug_time_encoding", noise_level),
            ("temporal_motion_score_encoding", motion_score),
        ):
            values = expand_rows(values, rows, like.device)
            if values is not None and hasattr(self, name):
                vector = self.embed(getattr(self, name), values, like)
                total = vector if total is None else total + vector
        return total

    def forward(self, x: Tensor, conditions: Conditions, step: int = 0, hooks: Hooks = NO_HOOKS) -> Tensor:
        """Predict the noise; see ``UNet.forward``."""
        self._check(x, conditions)
        # Release 1.1 picks the image layer when a batch holds at most two samples; told by the conditions
        # instead, one branch of a short clip run alone still gets the video layer
        # (RELEASES.md, "Input layer by batch size").
        is_image = not conditions.is_temporal and hasattr(self, "image_in_layer")
        x = self.image_in_layer(x) if is_image else self.in_layer(x)
        return self._run_levels(x, Step(conditions, step, hooks=hooks))


def keyframe_positions(family: str, keyframes: int) -> Tensor:
    """Return ``[keyframes]`` positions told to the network: 0, 12, .. in release 1.0; 0, 1, .. in 1.1.

    Raises:
        InputError: if release 1.0 could not tell them apart.

    Source: release 1.0 spreads 180 time units over the frames (15 frames: every 12); release 1.1 counts.
    """
    check_keyframes(family, keyframes)
    if family == "1.1":
        return torch.arange(keyframes)
    return torch.arange(keyframes) * (POSITION_UNITS_V10 // keyframes)
