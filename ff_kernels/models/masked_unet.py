"""The paper's baseline of its interpolation: Masked Frame Interpolation as in Video LDM (paper, appendix 10)."""

from torch import Tensor

from .blocks import Embedding
from .conditions import Conditions, cut_context
from .interpolation_unet import InterpolationUNet
from .keyframe_unet import KeyframeBlocks, keyframe_positions
from .layers import Layers

# Two known frames and the three between them.
GROUP_FRAMES = 5


class MaskedUNet(InterpolationUNet):
    """Masked-frame U-Net: every frame of a group is a sample ``[noisy 4 | known or zero 4 | mask 1]``, output 4.

    Blocks are those of the keyframe U-Net, which mix the five frames of a group; conditions are those of the
    interpolation U-Net (skip-frame, perturbation level, no text), so that the two differ in their idea alone.
    """

    block_set = KeyframeBlocks

    def _add_embeddings(self, layers: Layers) -> None:
        super()._add_embeddings(layers)
        self.to_temporal_embed = Embedding(layers, self.config)

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
    ) -> Conditions:
        """Work out all that depends on timestep and guidance branch, for every step of a run.

        Arguments as in ``InterpolationUNet.prepare`` of release 1.0; N is ``5 * R * num_gaps``.
        """
        valid, mask = cut_context(context, context_mask)
        pooled = self.feature_pooling(context, lengths, valid, mask)
        time = self._told(self._time_vectors(timesteps, context), pooled, noise_level, skip_frames)
        position = self.embed(self.to_temporal_embed, keyframe_positions(self.config.family, GROUP_FRAMES), context)
        vectors = {"time": time, "position": position[None]}
        samples = len(context) * num_gaps * GROUP_FRAMES
        return self._tables(valid, mask, vectors, samples=samples, clip_length=GROUP_FRAMES)
