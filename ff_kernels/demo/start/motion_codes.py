"""Start values that tell the keyframe U-Net which frame it draws and which way the caption says that things move.

Where a thing is follows from a product: the direction (caption) times the time (frame) times the place. In release 1.0
the frame reaches one norm before each attention over time, and as long as that attention looks at all frames alike
it gives every frame the same. So the frame reaches nothing, no part of the product has a gradient, and neither
does the whole. These start values make the first attention over time look at its own frame and write down the
direction times the time; from there the rest is learnt.
"""

import math

import torch
from torch import Tensor, nn

from ...models.keyframe_unet import KeyframeUNet, keyframe_positions
from ..world.scenes import Scene
from .least_squares import fit_affine

# Opposite motions, and one that has no opposite; every one gets a channel.
DIRECTIONS = (("right", "left"), ("down", "up"), ("grows", "shrinks"), ("bounces", None))
# Size of the codes behind the first norm, the gain of queries and keys that tells frames apart, and the size of what
# is written into the features, which have a standard deviation of about two there.
_AMPLITUDE = 3.0
_ATTENTION_GAIN = 2.0
_WRITTEN = 1.0
_RIDGE = 1e-3


def directions(scene: Scene | None) -> tuple[float, ...]:
    """Return one number in -1..1 for each of ``DIRECTIONS``; zeros without a scene."""
    if scene is None:
        return (0.0,) * len(DIRECTIONS)
    return tuple(float(scene.motion == ahead) - float(scene.motion == back) for ahead, back in DIRECTIONS)


def keyframe_codes(frames: int) -> Tensor:
    """Return ``[frames, 6]``: where on a circle the frame is (2), its time in -1.2..1.2 for three directions, the beat.

    The second time has the other sign, so that the norm over the channels does not take the times for its mean.
    """
    angle = torch.arange(frames) * (2 * math.pi / frames)
    time = torch.linspace(-1.2, 1.2, frames)
    beat = 1.0 - 2.0 * (torch.arange(frames) % 2)
    return torch.stack([angle.cos(), angle.sin(), time, -time, time, beat], dim=1)


@torch.no_grad()
def write_motion(unet: KeyframeUNet, vectors: Tensor, moves: Tensor) -> None:
    """Set the start values of the first attention over time of ``unet``.

    Its last six channels are given the codes of their frame by the first norm, its first head reads them from the same
    frame and writes them back, the second norm multiplies four of them by the direction it reads in the time and text
    vector, and the feed-forward adds the products. The other heads and channels are left as they are.

    Args:
        unet: changed in place.
        vectors: ``[N, E]`` time and text vectors of captions as the norms read them, after SiLU.
        moves: ``[N, 4]`` ``directions`` of the same captions.
    """
    block = unet.down_samples[1].temporal_attention_block
    frames, head = unet.config.num_frames, unet.config.head_dim
    codes = _AMPLITUDE * keyframe_codes(frames)
    linear = block.in_norm.context_mlp[1]
    channels = linear.weight.shape[0] // 2
    coded = list(range(channels - codes.shape[1], channels))
    places = unet.embed(unet.to_temporal_embed, keyframe_positions("1.0", frames), torch.zeros(1))
    # The norm multiplies by 1 + scale: -1 clears the features out of the coded channels.
    _fit(linear, coded, nn.functional.silu(places), -torch.ones(frames, len(coded)))
    _fit(linear, [channels + i for i in coded], nn.functional.silu(places), codes)

    attention = block.temporal_attention
    for layer, count, gain in (
        (attention.to_query, 2, _ATTENTION_GAIN),
        (attention.to_key, 2, _ATTENTION_GAIN),
        (attention.to_value, len(coded), 1.0),
    ):
        layer.weight[:head] = 0
        for i in range(count):
            layer.weight[i, coded[i]] = gain
    attention.output_layer.weight[:, :head] = 0
    attention.output_layer.weight[coded] = 0
    for i, channel in enumerate(coded):
        attention.output_layer.weight[channel, i] = _WRITTEN / _AMPLITUDE

    linear = block.out_norm.context_mlp[1]
    moving = coded[-len(DIRECTIONS) :]
    _fit(linear, moving, vectors, moves - 1, ridge=_RIDGE * len(vectors))
    for row in moving:
        linear.weight[channels + row] = 0
        linear.bias[channels + row] = 0
    widen, _, narrow = block.feed_forward
    narrow.weight[coded] = 0
    for i, channel in enumerate(moving):
        for hidden, sign in ((2 * i, 1.0), (2 * i + 1, -1.0)):
            widen.weight[hidden] = 0
            narrow.weight[:, hidden] = 0
            widen.weight[hidden, channel] = 2 * sign
            # silu(2y) - silu(-2y) = 2y.
            narrow.weight[channel, hidden] = sign


def _fit(linear: nn.Linear, rows: list[int], inputs: Tensor, outputs: Tensor, ridge: float = 0.0) -> None:
    """Set rows of a linear layer so that they map ``inputs [N, E]`` to ``outputs [N, rows]``."""
    solution = fit_affine(inputs, outputs, ridge=ridge)
    linear.weight[rows] = solution[:-1].T.to(linear.weight)
    linear.bias[rows] = solution[-1].to(linear.bias)
