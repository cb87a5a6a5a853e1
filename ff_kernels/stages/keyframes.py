"""Keyframes from text, with a first frame (release 1.1) or without, and a single picture.

B clips, T frames, h and w latent sides.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..models.keyframe_unet import KeyframeUNet, keyframe_positions
from ..sampling.guidance import text_image_weights, text_weights
from ..sampling.noise import Noise
from ..sampling.samplers import add_noise
from ..sampling.schedule import alphas_cumprod_v11
from .releases import RELEASES, V11
from .run import Branch, Run, Text, run_stage


@dataclass(frozen=True)
class FirstFrame:
    """What release 1.1 starts from, beside the text.

    Attributes:
        latents: ``[B, 4, h, w]``, or one for all clips.
        image_guidance: wi of ``text_image_weights``.
        motion_score: 1 (still) .. 100.
        noise_level: diffusion steps of noise added to the latents, 0 .. 999.
        uniform_noise: add uniform 0..1 noise as the release does; False adds normal noise, which is what the network
            is told about.
    """

    latents: Tensor
    image_guidance: float = V11.image_guidance
    motion_score: int = V11.motion_score
    noise_level: int = V11.noise_level
    uniform_noise: bool = True

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        """Draw the noise ``[B, C, h, w]`` that is added to the latents."""
        # Release 1.1: torch.rand_like where normal noise was meant (golden v11_pipeline).
        return (noise.uniform if self.uniform_noise else noise.normal)(shape)


def draw_start(
    noise: Noise, shape: tuple[int, int, int, int, int], like: Tensor, first_frame: FirstFrame | None = None
) -> tuple[Tensor, Tensor | None]:
    """Draw what a run of keyframes begins with, in the one order that every host keeps.

    Args:
        noise: the clips' source, at its beginning.
        shape: B, T, C, h and w of the latents.
        like: tensor of the device and dtype wanted.
        first_frame: release 1.1, None without.

    Returns:
        Standard normal start ``[B * T, C, h, w]``, and what the network is shown of the first frame beside it,
        ``[B, T, C + 1, h, w]``: its noisy latents and a mask of 1, both zero after frame 0.
    """
    clips, frames, channels, *size = shape
    start = noise.normal((clips * frames, channels, *size)).to(like)
    if first_frame is None:
        return start, None
    fresh = first_frame.draw(noise, (clips, channels, *size)).to(like)
    shown = like.new_zeros(clips, frames, channels + 1, *size)
    noised = add_noise(first_frame.latents.to(like), fresh, alphas_cumprod_v11(), first_frame.noise_level)
    shown[:, 0, :channels] = noised
    shown[:, 0, channels] = 1
    return start, shown


def sample_keyframes(
    unet: KeyframeUNet, text: Text, unconditional: Text, run: Run, *, keyframes: int, size: tuple[int, int],
    first_frame: FirstFrame | None = None, guidance_scale: float | None = None, steps: int | None = None,
) -> Tensor:  # fmt: skip
    """Sample keyframes from text (release 1.0) or from text and a first frame (1.1).

    Args:
        unet: keyframe U-Net; its family decides the sampling.
        text: the prompts of B clips.
        unconditional: null texts or, release 1.0, negative prompts.
        run: noise source, branch order, callback.
        keyframes: T; ``Release.keyframes`` is what the network was trained on.
        size: latent height and width.
        first_frame: release 1.1.
        guidance_scale: w of ``text_weights`` (1.0) or ``text_image_weights`` (1.1); default the release's.
        steps: sampling steps, 1 .. 1000; default the release's.

    Returns:
        ``[B, T, 4, h, w]`` float32 latents; frame 0 is generated like the others.

    Raises:
        InputError: if the release reads no first frame or needs one, cannot tell so many keyframes apart, or a side
            or the number of steps is none it takes.

    Source: releases 1.0 and 1.1, golden ``v10_pipeline`` (``keyframes_plain``, ``keyframes_negative``),
    ``v11_pipeline`` (``keyframes``).
    """
    release = RELEASES[unet.config.family]
    if release.reads_image != (first_frame is not None):
        wanted, got = ("a", "none: give one") if release.reads_image else ("no", "one: leave it out")
        raise InputError(f"expected {wanted} first frame for keyframes of release {release.family}, got {got}")
    sampling = release.keyframe.changed(steps, guidance_scale)
    given = {"positions": keyframe_positions(release.family, keyframes), "keyframes": keyframes}
    shape = (len(text.context), keyframes, unet.config.latent_channels, *size)
    x, shown = draw_start(run.noise, shape, torch.empty(0, device=text.context.device), first_frame)
    if first_frame is None:
        with_text, without = text_weights(sampling.guidance_scale)
        branches = [Branch(text, with_text), Branch(unconditional, without)]
    else:
        given |= {"noise_level": first_frame.noise_level, "motion_score": first_frame.motion_score}
        shown = shown.flatten(0, 1)
        hidden = torch.zeros_like(shown)
        both, image, neither = text_image_weights(sampling.guidance_scale, first_frame.image_guidance)
        branches = [
            Branch(text, both, lambda x: torch.cat([x, shown], dim=1)),
            Branch(unconditional, image, lambda x: torch.cat([x, shown], dim=1)),
            Branch(unconditional, neither, lambda x: torch.cat([x, hidden], dim=1)),
        ]
    x = run_stage(unet, sampling, branches, x, run, **given)
    return x.unflatten(0, shape[:2])


def sample_picture(
    unet: KeyframeUNet, text: Text, unconditional: Text, run: Run, *, size: tuple[int, int],
    guidance_scale: float | None = None, steps: int | None = None,
) -> Tensor:  # fmt: skip
    """Sample one picture per prompt with the keyframe U-Net of release 1.1 in image mode: ``[B, 4, h, w]`` latents.

    Arguments as in ``sample_keyframes``. Source: release 1.1, golden ``v11_pipeline`` (``image_latent``).
    """
    sampling = RELEASES[unet.config.family].keyframe.changed(steps, guidance_scale)
    # Release 1.1: the condition and mask channels are zero for a picture.
    extra = unet.config.num_channels - unet.config.latent_channels
    with_text, without = text_weights(sampling.guidance_scale)

    def show(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, 0, 0, 0, 0, extra))

    branches = [Branch(text, with_text, show), Branch(unconditional, without, show)]
    start = run.noise.normal((len(text.context), unet.config.latent_channels, *size)).to(text.context.device)
    return run_stage(unet, sampling, branches, start, run, positions=None)
