"""Keyframes from text, with a first frame (release 1.1) or without, and a single picture.

B clips, T frames, h and w latent sides.
"""

import torch
from torch import Tensor

from ..models.conditions import Conditions
from ..models.keyframe_unet import KeyframeUNet, keyframe_positions
from ..sampling.guidance import text_image_weights, text_weights
from ..sampling.samplers import add_noise, sample_ddpm
from ..sampling.schedule import make_schedule_v10, make_schedule_v11
from .run import Run, Text, branches


def sample_keyframes_v10(
    unet: KeyframeUNet,
    text: Text,
    unconditional: Text,
    run: Run,
    *,
    size: tuple[int, int],
    num_frames: int,
    guidance_scale: float = 5.0,
    steps: int = 50,
) -> Tensor:
    """Sample keyframes from text, release 1.0.

    Args:
        unet: 1.0 keyframe U-Net.
        text: the prompts of B clips.
        unconditional: null texts, or negative prompts.
        run: noise source, branch order, callback.
        size: latent height and width.
        num_frames: T; the release was trained on 15.
        guidance_scale: w in ``(w + 1) * cond - w * uncond``.
        steps: sampling steps, 1 .. 1000.

    Returns:
        ``[B, T, 4, h, w]`` float32 latents.

    Source: release 1.0, golden ``v10_pipeline`` (``keyframes_plain``, ``keyframes_negative``).
    """
    schedule = make_schedule_v10(steps)
    clips, device = text.context.shape[0], text.context.device

    def prepare(rows: Text, branches: list[int]) -> Conditions:
        return unet.prepare(
            rows.context,
            rows.mask,
            schedule.timesteps,
            lengths=rows.lengths,
            positions=keyframe_positions("1.0", num_frames),
            num_frames=num_frames,
        )

    predict = branches(
        unet,
        [text, unconditional],
        prepare,
        lambda x: [x, x],
        run,
    )
    x = run.noise.normal((clips * num_frames, unet.config.latent_channels, *size)).to(device)
    weights = text_weights(guidance_scale)
    x = sample_ddpm(predict, x, schedule, run.noise, weights=weights, clip="quantile", callback=run.callback)
    return x.unflatten(0, (clips, num_frames))


def sample_picture_v11(
    unet: KeyframeUNet,
    text: Text,
    unconditional: Text,
    run: Run,
    *,
    size: tuple[int, int],
    guidance_scale: float = 5.0,
    steps: int = 50,
) -> Tensor:
    """Sample one picture per prompt with the 1.1 keyframe U-Net in image mode: ``[B, 4, h, w]`` latents.

    Arguments as in ``sample_keyframes_v10``. Source: release 1.1, golden ``v11_pipeline`` (``image_latent``).
    """
    schedule = make_schedule_v11(steps, "leading")
    clips, device = text.context.shape[0], text.context.device

    def prepare(rows: Text, branches: list[int]) -> Conditions:
        return unet.prepare(rows.context, rows.mask, schedule.timesteps, lengths=rows.lengths, positions=None)

    def inputs(x: Tensor) -> list[Tensor]:
        # Release 1.1: the condition and mask channels are zero for a picture.
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, unet.config.num_channels - x.shape[1]))
        return [x, x]

    predict = branches(
        unet,
        [text, unconditional],
        prepare,
        inputs,
        run,
    )
    x = run.noise.normal((clips, unet.config.latent_channels, *size)).to(device)
    return sample_ddpm(predict, x, schedule, run.noise, weights=text_weights(guidance_scale), callback=run.callback)


def sample_keyframes_v11(
    unet: KeyframeUNet,
    text: Text,
    unconditional: Text,
    first_frame: Tensor,
    run: Run,
    *,
    num_frames: int,
    guidance_scale: float = 5.0,
    image_guidance: float = 2.0,
    motion_score: int = 10,
    noise_level: int = 20,
    uniform_noise: bool = True,
    steps: int = 50,
) -> Tensor:
    """Sample keyframes from text and a first frame, release 1.1.

    Args:
        unet: 1.1 keyframe U-Net.
        text: the prompts of B clips.
        unconditional: null texts.
        first_frame: ``[B, 4, h, w]`` latents of the first frames.
        run: noise source, branch order, callback.
        num_frames: T; the release was trained on 12.
        guidance_scale: w of ``text_image_weights``.
        image_guidance: wi of ``text_image_weights``.
        motion_score: 1 (still) .. 100.
        noise_level: diffusion steps of noise added to the first frame, 0 .. 999; the release uses 20.
        uniform_noise: add uniform 0..1 noise as the release does; False adds normal noise, which is what the
            network is told about.
        steps: sampling steps, 1 .. 1000.

    Returns:
        ``[B, T, 4, h, w]`` float32 latents; frame 0 is generated like the others.

    Source: release 1.1, golden ``v11_pipeline`` (``keyframes``).
    """
    schedule = make_schedule_v11(steps, "leading")
    clips, channels, height, width = first_frame.shape
    device = text.context.device
    x = run.noise.normal((clips * num_frames, channels, height, width)).to(device)
    # Release 1.1: torch.rand_like where normal noise was meant (golden v11_pipeline); uniform_noise=False mends it.
    draw = run.noise.uniform if uniform_noise else run.noise.normal
    noisy = add_noise(first_frame.to(x), draw(first_frame.shape).to(x), schedule, noise_level)
    condition = x.new_zeros(clips, num_frames, channels + 1, height, width)
    condition[:, 0, :channels] = noisy
    condition[:, 0, channels] = 1
    condition = condition.flatten(0, 1)

    def prepare(rows: Text, branches: list[int]) -> Conditions:
        return unet.prepare(
            rows.context,
            rows.mask,
            schedule.timesteps,
            lengths=rows.lengths,
            positions=keyframe_positions("1.1", num_frames),
            num_frames=num_frames,
            noise_level=noise_level,
            motion_score=motion_score,
        )

    def inputs(x: Tensor) -> list[Tensor]:
        shown = torch.cat([x, condition], dim=1)
        return [shown, shown, torch.cat([x, torch.zeros_like(condition)], dim=1)]

    predict = branches(
        unet,
        [text, unconditional, unconditional],
        prepare,
        inputs,
        run,
    )
    weights = text_image_weights(guidance_scale, image_guidance)
    x = sample_ddpm(predict, x, schedule, run.noise, weights=weights, callback=run.callback)
    return x.unflatten(0, (clips, num_frames))
