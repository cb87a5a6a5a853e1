"""Frames between frames: the paper's interpolation, its baseline, and as many passes of either as are wanted.

B clips, T frames, G gaps, h and w latent sides.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..models.interpolation_unet import InterpolationUNet
from ..models.masked_unet import GROUP_FRAMES, MaskedUNet
from ..models.text_encoder import NULL_TOKENS_V10, null_context
from ..sampling.gaps import inner_frames, join_gaps, masked_groups, split_gaps
from ..sampling.guidance import text_weights
from ..sampling.noise import Noise, SeededNoise, pass_stream, stage_seeds
from .releases import RELEASES
from .run import Branch, Run, Text, run_stage

# Frames between two input frames, at the full rate, in the first and the second interpolation pass.
SKIP_FRAMES = (3, 1)
# How a host runs a pass: from its noise and the samples of all clips and guidance branches.
MakeRun = Callable[[Noise, int], Run]


def interpolate_passes(
    unet: InterpolationUNet | MaskedUNet, frames: Tensor, text: Text | None, null_embedding: Tensor,
    make_run: MakeRun, *, seed: int, passes: int, first: int = 0, numbers: Sequence[int] | None = None,
    guidance_scale: float | None = None, steps: int | None = None,
) -> Tensor:  # fmt: skip
    """Fill three frames into every gap, again and again: each pass with its own noise and its own frames to skip.

    Args:
        unet: interpolation or masked-frame U-Net.
        frames: ``[B, T, 4, h, w]`` latents; they pass through bit for bit.
        text: the prompts, which release 1.1 reads.
        null_embedding: ``[D]`` learned empty text of the checkpoint, in the dtype to compute in.
        make_run: how to run a pass.
        seed: of the first clip.
        passes: how often to interpolate.
        first: number of the first pass, from 0: later passes see frames that are closer in time.
        numbers: of the clips in the batch that ``seed`` begins; default 0, 1, ..
        guidance_scale: see ``interpolate``.
        steps: see ``interpolate``.

    Returns:
        ``[B, T', 4, h, w]`` float32 latents, T to 4T - 3 per pass.
    """
    fill, per_gap = GAP_STAGES[unet.config.stage]
    for i in range(first, first + passes):
        clips, gaps = frames.shape[0], frames.shape[1] - 1
        seeds = stage_seeds(seed, clips if numbers is None else numbers, pass_stream(i))
        frames = fill(
            unet,
            frames,
            text,
            null_embedding,
            make_run(SeededNoise(seeds), 2 * clips * gaps * per_gap),
            skip_frames=SKIP_FRAMES[min(i, len(SKIP_FRAMES) - 1)],
            guidance_scale=guidance_scale,
            steps=steps,
        )
    return frames


def interpolate(
    unet: InterpolationUNet, keyframes: Tensor, text: Text | None, null_embedding: Tensor, run: Run, *,
    skip_frames: int, guidance_scale: float | None = None, steps: int | None = None,
) -> Tensor:  # fmt: skip
    """Fill three frames into every gap: one interpolation pass, T to 4T - 3.

    Args:
        unet: interpolation U-Net; its family decides the sampling.
        keyframes: ``[B, T, 4, h, w]`` latents; they pass through bit for bit.
        text: the prompts (release 1.1); release 1.0 does not read them.
        null_embedding: ``[D]`` learned empty text of the interpolation checkpoint, in the dtype to compute in.
        run: noise source, branch order, callback.
        skip_frames: 3 in the first pass, 1 in the second.
        guidance_scale: w; default the release's, larger values collapse onto the keyframes.
        steps: sampling steps; default the release's.

    Returns:
        ``[B, 4T - 3, 4, h, w]`` float32 latents.

    Raises:
        ShapeError: if there are fewer than two keyframes.
        InputError: if release 1.1 is given no text.

    Source: paper section 4.3; golden ``v10_pipeline``, ``v11_pipeline`` (``video_medium``, ``video_high``).
    """
    sampling = RELEASES[unet.config.family].interpolation.changed(steps, guidance_scale)
    left, right = split_gaps(keyframes.float())
    hidden = torch.zeros_like(left)
    # Release 1.1: the unconditional half runs with every temporal merge switched off.
    merges: tuple[float | None, float | None] = (1.0, 0.0)
    if unet.config.family == "1.0":
        # Release 1.0: the null text in both branches, two tokens long (models/RELEASES.md,
        # "Two null tokens, whatever the prompt").
        text, merges = Text.of(*null_context(null_embedding, len(keyframes), NULL_TOKENS_V10)), (None, None)
    elif text is None:
        raise InputError("interpolation of release 1.1 expected a prompt, got none: encode one and pass it")
    with_text, without = text_weights(sampling.guidance_scale)
    branches = [
        Branch(text, with_text, lambda x: torch.cat([left, x, right], 1), merges[0]),
        Branch(text.unconditional(null_embedding), without, lambda x: torch.cat([hidden, x, hidden], 1), merges[1]),
    ]
    start = run.noise.normal((len(left), unet.config.out_channels, *left.shape[-2:])).to(left)
    given = {"num_gaps": keyframes.shape[1] - 1, "skip_frames": skip_frames}
    return join_gaps(keyframes, run_stage(unet, sampling, branches, start, run, **given))


def interpolate_masked(
    unet: MaskedUNet, keyframes: Tensor, text: Text | None, null_embedding: Tensor, run: Run, *, skip_frames: int,
    guidance_scale: float | None = None, steps: int | None = None,
) -> Tensor:  # fmt: skip
    """Fill three frames into every gap by Masked Frame Interpolation, the paper's baseline: T to 4T - 3.

    Every gap is a clip of five frames of its own, all of which are denoised; both ends are shown to the network and
    kept as given. Steps, guidance and prediction are those of ``interpolate``, so that only the network differs.
    Arguments and results are those of ``interpolate`` with release 1.0; the unconditional branch is shown no frame and
    no mask.

    Source: paper, appendix 10.
    """
    sampling = RELEASES[unet.config.family].interpolation.changed(steps, guidance_scale)
    known = masked_groups(keyframes.float())
    hidden = torch.zeros_like(known)
    text = Text.of(*null_context(null_embedding, len(keyframes), NULL_TOKENS_V10))
    with_text, without = text_weights(sampling.guidance_scale)
    branches = [
        Branch(text, with_text, lambda x: torch.cat([x, known], 1)),
        Branch(text, without, lambda x: torch.cat([x, hidden], 1)),
    ]
    start = run.noise.normal((len(known), unet.config.out_channels, *known.shape[-2:])).to(known)
    given = {"num_gaps": keyframes.shape[1] - 1, "skip_frames": skip_frames}
    return join_gaps(keyframes, inner_frames(run_stage(unet, sampling, branches, start, run, **given)))


# What fills gaps, by the stage of the network's configuration, and the samples it runs for each of them.
GAP_STAGES = {"interpolation": (interpolate, 1), "masked": (interpolate_masked, GROUP_FRAMES)}
