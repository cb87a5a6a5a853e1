"""The sampling stages between tensors: text to keyframes, keyframes to video; no files, no sizes in pixels.

Every stage takes networks, tensors and a noise source, so that it can be run alone, checked against reference
numbers, or wrapped by a host. B clips, T frames, G gaps, N samples, h and w latent sides.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .errors import InputError
from .models.conditions import Conditions
from .models.interpolation_unet import InterpolationUNet
from .models.keyframe_unet import KeyframeUNet, keyframe_positions
from .models.masked_unet import MaskedUNet
from .models.text_encoder import NULL_TOKENS_V10, null_context
from .models.unet import UNet
from .sampling.gaps import inner_frames, join_gaps, masked_groups, split_gaps
from .sampling.guidance import Predict, in_turn, text_image_weights, text_weights
from .sampling.noise import Noise
from .sampling.samplers import (
    Callback,
    add_noise,
    sample_latents,
)
from .sampling.schedule import alphas_cumprod_v11, make_schedule_v10, make_schedule_v11

# Frames between two input frames, at the full rate, in the first and the second interpolation pass.
SKIP_FRAMES = (3, 1)


@dataclass(frozen=True)
class Text:
    """What one guidance branch reads.

    Attributes:
        context: ``[B, L, D]`` in the dtype to compute in.
        mask: ``[B, L]``, non-zero where a token is valid.
        lengths: ``[B]`` tokens of each prompt plus one: what the pooling mean divides by.
    """

    context: Tensor
    mask: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, context: Tensor, mask: Tensor) -> "Text":
        """Wrap a context whose rows all count to their end."""
        return cls(context, mask, torch.full((context.shape[0],), context.shape[1], device=context.device))

    def unconditional(self, null_embedding: Tensor) -> "Text":
        """Return the null text that stands beside this one; its pooling depends on the prompts' lengths."""
        rows, length = self.mask.shape
        return Text(*null_context(null_embedding.to(self.context), rows, length), self.lengths)

    @staticmethod
    def stack(texts: "list[Text]") -> "Text":
        """Concatenate branches along the rows, padding to the longest."""
        longest = max(t.mask.shape[1] for t in texts)
        padded = [(longest - t.mask.shape[1], t) for t in texts]
        return Text(
            torch.cat([torch.nn.functional.pad(t.context, (0, 0, 0, gap)) for gap, t in padded]),
            torch.cat([torch.nn.functional.pad(t.mask, (0, gap)) for gap, t in padded]),
            torch.cat([t.lengths for t in texts]),
        )


@dataclass(frozen=True)
class Run:
    """How a sampling stage runs, beside its inputs.

    Attributes:
        noise: where random numbers come from.
        stacked: run the guidance branches in one batch (faster) or one after the other (less memory).
        callback: called after every step; returning True stops the run.
        conditioner: entered while ``prepare`` runs: brings the weights that only it reads to the device.
        graphs: makes a function of tensors a recorded one (``runtime.graph``); None runs every step anew.
    """

    noise: Noise
    stacked: bool = True
    callback: Callback | None = None
    conditioner: AbstractContextManager = field(default_factory=nullcontext)
    graphs: "Graphs | None" = None


class Graphs(Protocol):
    """Where recorded steps come from."""

    def replayed(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a function that repeats the work of the first call on the tensors it is given."""


def _branches(
    unet: UNet,
    texts: list[Text],
    prepare: Callable[[Text, list[int]], Conditions],
    inputs: Callable[[Tensor], list[Tensor]],
    run: Run,
) -> Predict:
    dtype = texts[0].context.dtype

    def predicting(rows: Text, branches: list[int]) -> Predict:
        step_of = step_function(unet, prepare(rows, branches), run.graphs)

        def predict(x: Tensor, step: int) -> Tensor:
            parts = inputs(x)
            x = torch.cat([parts[i] for i in branches]) if len(branches) > 1 else parts[branches[0]]
            return step_of(x.to(dtype).contiguous(memory_format=torch.channels_last), step)

        return predict

    with run.conditioner:
        if run.stacked:
            return predicting(Text.stack(texts), list(range(len(texts))))
        return in_turn([predicting(text, [i]) for i, text in enumerate(texts)])


def step_function(unet: UNet, conditions: Conditions, graphs: Graphs | None) -> Predict:
    """Return the network under prepared conditions as ``(x, step) -> prediction``, recorded where ``graphs`` are given.

    A recorded prediction lives until the next call.
    """
    if graphs is None:
        return lambda x, step: unet(x, conditions, step)
    replayed = graphs.replayed(lambda x, *rows: unet(x, conditions.with_rows(rows)))
    return lambda x, step: replayed(x, *conditions.rows_of(step))


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

    predict = _branches(
        unet,
        [text, unconditional],
        prepare,
        lambda x: [x, x],
        run,
    )
    x = run.noise.normal((clips * num_frames, unet.config.latent_channels, *size)).to(device)
    weights = text_weights(guidance_scale)
    x = sample_latents(predict, x, schedule, run.noise, weights=weights, clip="quantile", callback=run.callback)
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

    predict = _branches(
        unet,
        [text, unconditional],
        prepare,
        inputs,
        run,
    )
    x = run.noise.normal((clips, unet.config.latent_channels, *size)).to(device)
    return sample_latents(predict, x, schedule, run.noise, weights=text_weights(guidance_scale), callback=run.callback)


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
    noisy = add_noise(first_frame.to(x), draw(first_frame.shape).to(x), alphas_cumprod_v11(), noise_level)
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

    predict = _branches(
        unet,
        [text, unconditional, unconditional],
        prepare,
        inputs,
        run,
    )
    weights = text_image_weights(guidance_scale, image_guidance)
    x = sample_latents(predict, x, schedule, run.noise, weights=weights, callback=run.callback)
    return x.unflatten(0, (clips, num_frames))


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
        # Release 1.0: the null text in both branches, two tokens long (paper.md, 5.1).
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

    predict = _branches(
        unet,
        [text, unconditional],
        prepare,
        lambda x: [torch.cat([left, x, right], 1), torch.cat([zeros, x, zeros], 1)],
        run,
    )
    x = run.noise.normal((clips * gaps, unet.config.out_channels, *keyframes.shape[-2:])).to(left)
    weights = text_weights(guidance_scale)
    x = sample_latents(
        predict, x, schedule, run.noise, weights=weights, predicted="v", clip=clip, callback=run.callback
    )
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

    predict = _branches(
        unet, [text, text], prepare, lambda x: [torch.cat([x, shown], 1), torch.cat([x, hidden], 1)], run
    )
    x = run.noise.normal((len(shown), unet.config.out_channels, *keyframes.shape[-2:])).to(shown)
    weights = text_weights(_default(guidance_scale, 0.25))
    x = sample_latents(
        predict, x, schedule, run.noise, weights=weights, predicted="v", clip="quantile", callback=run.callback
    )
    return join_gaps(keyframes, inner_frames(x))


# What fills gaps, by the stage of the network's configuration.
GAP_STAGES = {"interpolation": interpolate, "masked": interpolate_masked}


def _default(value: float | None, default: float) -> float:
    return default if value is None else value
