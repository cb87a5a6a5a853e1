"""Frames between frames: the paper's interpolation, its baseline, and what fills gaps by a network's stage.

B clips, T frames, G gaps, h and w latent sides.
"""

import torch
from torch import Tensor

from ..errors import InputError
from ..models.conditions import Conditions
from ..models.interpolation_unet import InterpolationUNet
from ..models.masked_unet import MaskedUNet
from ..models.text_encoder import NULL_TOKENS_V10, null_context
from ..sampling.gaps import inner_frames, join_gaps, masked_groups, split_gaps
from ..sampling.guidance import text_weights
from ..sampling.samplers import sample_ddpm
from ..sampling.schedule import make_schedule_v10, make_schedule_v11
from .run import Run, Text, branches

# Frames between two input frames, at the full rate, in the first and the second interpolation pass.
SKIP_FRAMES = (3, 1)


def interpolate(
    unet: InterpolationUNet,
    keyframes: Tensor,
    text: Text | None,
    null_embedding: Tensor,
    run: Run,
    *,
    skip_frames: int,
    guidance_scale: float | None = None,
    steps: int | None = None,
) -> Tensor:
    """Fill three frames into every gap: one interpolation pass, T to 4T - 3.

    Args:
        unet: interpolation U-Net; its family decides the sampling.
        keyframes: ``[B, T, 4, h, w]`` latents; they pass through bit for bit.
        text: the prompts (release 1.1); release 1.0 does not read them.
        null_embedding: ``[D]`` learned empty text of the interpolation checkpoint, in the dtype to compute in.
        run: noise source, branch order, callback.
        skip_frames: 3 in the first pass, 1 in the second.
        guidance_scale: default 0.25 (1.0) or 0.5 (1.1); larger values collapse onto the keyframes.
        steps: default 50 (1.0) or 10 (1.1).

    Returns:
        ``[B, 4T - 3, 4, h, w]`` float32 latents.

    Raises:
        ShapeError: if there are fewer than two keyframes.
        InputError: if release 1.1 is given no text.

    Source: paper section 4.3; golden ``v10_pipeline``, ``v11_pipeline`` (``video_medium``, ``video_high``).
    """
    is_v10 = unet.config.family == "1.0"
    left, right = split_gaps(keyframes.float())
    clips, gaps = keyframes.shape[0], keyframes.shape[1] - 1
    if is_v10:
        guidance_scale, steps = _default(guidance_scale, 0.25), _default(steps, 50)
        schedule, clip = make_schedule_v10(steps), "quantile"
        # Release 1.0: the null text in both branches, two tokens long (models/RELEASES.md,
        # "Two null tokens, whatever the prompt").
        text = Text.of(*null_context(null_embedding, clips, NULL_TOKENS_V10))
    else:
        guidance_scale, steps = _default(guidance_scale, 0.5), _default(steps, 10)
        schedule, clip = make_schedule_v11(steps, "trailing"), "range"
        if text is None:
            raise InputError("interpolation of release 1.1 expected a prompt, got none: encode one and pass it")
    unconditional = text.unconditional(null_embedding)
    zeros = torch.zeros_like(left)

    def prepare(rows: Text, branches: list[int]) -> Conditions:
        # Release 1.1: the unconditional half runs with every temporal merge switched off.
        merge = None if is_v10 else torch.tensor([1.0 - b for b in branches]).repeat_interleave(clips)
        return unet.prepare(
            rows.context,
            rows.mask,
            schedule.timesteps,
            lengths=rows.lengths,
            num_gaps=gaps,
            skip_frames=skip_frames,
            merge=merge,
        )

    predict = branches(
        unet,
        [text, unconditional],
        prepare,
        lambda x: [torch.cat([left, x, right], 1), torch.cat([zeros, x, zeros], 1)],
        run,
    )
    x = run.noise.normal((clips * gaps, unet.config.out_channels, *keyframes.shape[-2:])).to(left)
    weights = text_weights(guidance_scale)
    x = sample_ddpm(predict, x, schedule, run.noise, weights=weights, predicted="v", clip=clip, callback=run.callback)
    return join_gaps(keyframes, x)


def interpolate_masked(
    unet: MaskedUNet,
    keyframes: Tensor,
    text: Text | None,
    null_embedding: Tensor,
    run: Run,
    *,
    skip_frames: int,
    guidance_scale: float | None = None,
    steps: int | None = None,
) -> Tensor:
    """Fill three frames into every gap by Masked Frame Interpolation, the paper's baseline: T to 4T - 3.

    Every gap is a clip of five frames of its own, all of which are denoised; both ends are shown to the network and
    kept as given. Steps, guidance and prediction are those of ``interpolate``, so that only the network differs.

    Args:
        unet: masked-frame U-Net.
        keyframes: ``[B, T, 4, h, w]`` latents; they pass through bit for bit.
        text: not read.
        null_embedding: ``[D]`` learned empty text of the checkpoint, in the dtype to compute in.
        run: noise source, branch order, callback.
        skip_frames: 3 in the first pass, 1 in the second.
        guidance_scale: default 0.25; the other branch is shown no frame and no mask.
        steps: default 50.

    Returns:
        ``[B, 4T - 3, 4, h, w]`` float32 latents.

    Raises:
        ShapeError: if there are fewer than two keyframes.

    Source: paper, appendix 10.
    """
    shown = masked_groups(keyframes.float())
    clips, gaps = keyframes.shape[0], keyframes.shape[1] - 1
    schedule = make_schedule_v10(_default(steps, 50))
    text = Text.of(*null_context(null_embedding, clips, NULL_TOKENS_V10))
    hidden = torch.zeros_like(shown)

    def prepare(rows: Text, branches: list[int]) -> Conditions:
        return unet.prepare(
            rows.context,
            rows.mask,
            schedule.timesteps,
            lengths=rows.lengths,
            num_gaps=gaps,
            skip_frames=skip_frames,
        )

    predict = branches(
        unet, [text, text], prepare, lambda x: [torch.cat([x, shown], 1), torch.cat([x, hidden], 1)], run
    )
    x = run.noise.normal((len(shown), unet.config.out_channels, *keyframes.shape[-2:])).to(shown)
    weights = text_weights(_default(guidance_scale, 0.25))
    x = sample_ddpm(
        predict, x, schedule, run.noise, weights=weights, predicted="v", clip="quantile", callback=run.callback
    )
    return join_gaps(keyframes, inner_frames(x))


# What fills gaps, by the stage of the network's configuration.
GAP_STAGES = {"interpolation": interpolate, "masked": interpolate_masked}


def _default(value: float | None, default: float) -> float:
    return default if value is None else value
