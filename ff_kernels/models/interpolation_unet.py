"""The second U-Net: three frames for every gap between neighbouring keyframes (paper section 4.3)."""

import torch
from torch import Tensor, nn

from .blocks import Embedding, ResNetBlock
from .conditions import Conditions, cut_context, part_merge
from .layers import Layers
from .temporal_blocks import MergingAttentionBlock, MergingConvBlockV10, MergingConvBlockV11
from .unet import BlockSet, UNet, expand_rows

SKIP_FRAMES_ROWS = 20


class InterpolationBlocks(BlockSet):
    """Spatial blocks whose every convolution is followed by one over the gaps; 1.1 adds attention over them."""

    is_time_last = True

    def residual(self, inputs: int, outputs: int, resample: str | None = None) -> nn.Module:
        """Residual block with mixing over the gaps."""
        conv_block = MergingConvBlockV10 if self.config.family == "1.0" else MergingConvBlockV11
        return ResNetBlock(self.layers, self.config, (inputs, outputs), resample, conv_block)

    def temporal_attention(self, channels: int) -> nn.Module:
        """Attention block over the gaps (release 1.1 only)."""
        if self.config.family == "1.0":
            return nn.Identity()
        return MergingAttentionBlock(self.layers, self.config, channels)


class InterpolationUNet(UNet):
    """Interpolation U-Net: input ``[left 4 | noisy 12 | right 4]``, output 12 = three frames of 4 channels."""

    block_set = InterpolationBlocks

    def _add_embeddings(self, layers: Layers) -> None:
        self.perturbation_to_time_embed = Embedding(layers, self.config)
        self.time_embed_merge = layers.parameter(1)
        self.skip_merge = layers.parameter(1)
        self.skip_embeddings = layers.embedding(SKIP_FRAMES_ROWS, self.config.time_embed_dim)

    def conditioner_modules(self) -> list[nn.Module]:
        """Return the modules whose weights only ``prepare`` reads."""
        return [*super().conditioner_modules(), self.skip_embeddings]

    def prepare(
        self,
        context: Tensor,
        context_mask: Tensor,
        timesteps: Tensor,
        *,
        lengths: Tensor | None = None,
        num_gaps: int,
        skip_frames: Tensor | int,
        noise_level: Tensor | float = 0,
        gaps_per_row: int | None = None,
        merge: Tensor | None = None,
    ) -> Conditions:
        """Work out all that depends on text, timestep and guidance branch, for every step of a run.

        Args:
            context: ``[R, L, D]`` text of each row, in the dtype to compute in; release 1.0 uses the null
                embedding followed by one zero token in every row.
            context_mask: ``[R, L]``, non-zero where a token is valid.
            timesteps: ``[S]`` integers told to the network, or ``[S, R]``.
            lengths: ``[R]`` tokens that count in the pooling mean; default L. Rows of several prompts are padded,
                so that each needs its own.
            num_gaps: gaps per clip.
            skip_frames: frames between two input frames at the full rate: 3 in the first pass, 1 in the second;
                0..19, one number or ``[R]``.
            noise_level: diffusion steps of noise on the keyframes, 0..250 in training, 0 at inference; one
                number or ``[R]``.
            gaps_per_row: samples that share a row; default ``num_gaps``. N is R times this.
            merge: 1.1: ``[R]`` factors on the temporal merges, 0 for the unconditional half.

        Source: paper section 4.3; release 1.0 and 1.1, golden ``v10_interpolation_unet``,
        ``v11_interpolation_unet``.
        """
        rows = context.shape[0]
        per_row = num_gaps if gaps_per_row is None else gaps_per_row
        valid, mask = cut_context(context, context_mask)
        pooled = self.feature_pooling(context, lengths, valid, mask)
        time = self._told(self._time_vectors(timesteps, context), pooled, noise_level, skip_frames)
        merge = None if merge is None else merge.to(context.device).repeat_interleave(per_row, 0)
        mixing, merge = part_merge(merge, num_gaps)
        return self._tables(
            valid, mask, {"time": time}, samples=rows * per_row, clip_length=num_gaps, mixing=mixing, merge=merge
        )

    def _told(self, time: Tensor, pooled: Tensor, noise_level: Tensor | float, skip_frames: Tensor | int) -> Tensor:
        rows = len(pooled)
        # Release 1.0 pools the text first and dims it with the time; 1.1 adds it last (golden v1*_interpolation_unet).
        if self.config.family == "1.0":
            return self._merge_conditions(time + pooled, noise_level, skip_frames, rows)
        return self._merge_conditions(time, noise_level, skip_frames, rows) + pooled

    def _merge_conditions(
        self, time: Tensor, noise_level: Tensor | float, skip_frames: Tensor | int, rows: int
    ) -> Tensor:
        level = expand_rows(noise_level, rows, time.device)
        skip = expand_rows(skip_frames, rows, time.device).to(torch.long)
        noisy = self.embed(self.perturbation_to_time_embed, level, time)  # [R, E]
        share = self.time_embed_merge.to(time)
        time = share * noisy + (1 - share) * time
        return self.skip_merge.to(time) * self.skip_embeddings(skip).to(time) + time
