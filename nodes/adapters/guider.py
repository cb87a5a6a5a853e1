"""Guidance and sampling of the releases as core's GUIDER and SAMPLER."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...ff_kernels.errors import InputError
from ...ff_kernels.ops import mix_branches
from ...ff_kernels.sampling.guidance import text_image_weights
from ...ff_kernels.sampling.noise import KEYFRAMES, PICTURE, SeededNoise, stage_seeds
from ...ff_kernels.sampling.samplers import sample_latents
from ...ff_kernels.sampling.schedule import Schedule, make_schedule_from_sigmas
from ...ff_kernels.stages.keyframes import FirstFrame, draw_start
from ...ff_kernels.stages.presets import Plan
from ...ff_kernels.stages.releases import Sampling
from ...ff_kernels.stages.run import sampling_schedule
from .._compat import KSAMPLER, CFGGuider, calc_cond_batch, preview_callback
from .clips import clip_numbers
from .latent import FIRST_FRAME, NO_FIRST_FRAME, Conditioning, with_values, without_values
from .model import CoreModel, network_of


class TextImageGuider(CFGGuider):
    """Release 1.1's three branches: text and first frame, first frame only, neither."""

    def __init__(self, model: Any, guidance_scale: float, image_guidance: float) -> None:
        network, _ = network_of(model, "keyframe", "model")
        if network.config.family != "1.1":
            raise InputError(
                "model expected a keyframe U-Net of release 1.1, got release 1.0, which reads no first frame: use "
                "core's CFGGuider with cfg = guidance_scale + 1"
            )
        super().__init__(model)
        self.guidance_scale, self.image_guidance = guidance_scale, image_guidance
        # Wrappers of core's read or override this name.
        self.cfg = guidance_scale

    def set_conds(self, positive: Conditioning, negative: Conditioning) -> None:
        """Take both conditionings with their first frame; the third branch is the negative without it.

        Raises:
            InputError: if a first frame is missing.
        """
        for name, conditioning in (("positive", positive), ("negative", negative)):
            if any(FIRST_FRAME not in options for _, options in conditioning):
                raise InputError(
                    f"{name} expected a first frame, got text only: connect FusionFrames Image to Video (release 1.1), "
                    "or use core's CFGGuider for text alone"
                )
        neither = with_values(without_values(negative, (FIRST_FRAME,)), **{NO_FIRST_FRAME: True})
        self.inner_set_conds({"positive": positive, "middle": negative, "negative": neither})

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """Return the mixed estimate of the clean latents."""
        options = model_options or {}
        # What is hung on the network takes the first for the prompt's and the second for the negative prompt's.
        both, neither, image = calc_cond_batch(
            self.inner_model,
            [self.conds["positive"], self.conds["negative"], self.conds["middle"]],
            x,
            timestep,
            options,
        )
        weights = text_image_weights(self.guidance_scale, self.image_guidance)
        denoised = mix_branches([both, image, neither], weights, both.dtype)
        for function in options.get("sampler_post_cfg_function", []):
            denoised = function(
                {
                    "denoised": denoised,
                    "cond": self.conds["positive"],
                    "uncond": self.conds["negative"],
                    "cond_scale": self.guidance_scale,
                    "model": self.inner_model,
                    "uncond_denoised": neither,
                    "cond_denoised": both,
                    "sigma": timestep,
                    "model_options": options,
                    "input": x,
                }
            )
        return denoised


class _Guider(CFGGuider):
    """Core's guidance between two noise levels, the prompt alone outside of them; None for guidance throughout."""

    def __init__(self, model: Any, guided: tuple[float, float] | None) -> None:
        super().__init__(model)
        self.guided = guided

    def predict_noise(self, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the mixed estimate of the clean latents."""
        low, high = self.guided or (0.0, math.inf)
        cfg, is_guided = self.cfg, low <= float(timestep[0]) <= high
        self.cfg = cfg if is_guided else 1.0
        try:
            return super().predict_noise(x, timestep, *args, **kwargs)
        finally:
            self.cfg = cfg


class _FromNoise(KSAMPLER):
    """Sampling whose start is noise alone, even where a shorter table starts below the largest level."""

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        """Return True."""
        return True


class DDPMSampler(KSAMPLER):
    """Ancestral sampling of the releases, through whatever noise levels it is given.

    Args:
        numbers: of the clips; default those that core drew the start for.
        schedule: of the sigmas; default the releases' own formula through them.
    """

    def __init__(self, numbers: Sequence[int] | None = None, schedule: Schedule | None = None) -> None:
        super().__init__(_sample)
        self.numbers, self.schedule = numbers, schedule

    def sample(self, model_wrap: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run; an empty latent starts from noise alone, another one from itself with noise on it."""
        latent = kwargs.get("latent_image", args[3] if len(args) > 3 else None)
        is_empty = latent is None or not bool(torch.count_nonzero(latent))
        noise = kwargs.get("noise", args[2] if len(args) > 2 else None)
        seed = int((kwargs.get("extra_args") or args[0]).get("seed") or 0)
        loop = partial(_sample, numbers=self.numbers or clip_numbers(noise, seed), schedule=self.schedule)
        run = _FromNoise(loop) if is_empty else KSAMPLER(loop)
        return run.sample(model_wrap, sigmas, *args, **kwargs)


def ddpm_sampler() -> DDPMSampler:
    """Return the SAMPLER."""
    return DDPMSampler()


def sample_in_core(
    model: Any,
    positive: Conditioning,
    negative: Conditioning,
    shape: tuple[int, ...],
    *,
    seed: int,
    numbers: Sequence[int],
    sampling: Sampling,
    plan: Plan,
    image_guidance: float,
) -> Tensor:
    """Sample keyframes as the release does, by core's own sampling: with all that hangs on model and conditionings.

    Args:
        model: keyframe U-Net.
        positive: the prompt.
        negative: the negative prompt.
        shape: B, T, C, h and w.
        seed: of clip 0.
        numbers: of the clips.
        sampling: steps and guidance.
        plan: solver and levels.
        image_guidance: wi, for a first frame.

    Returns:
        ``[B, T, 4, h, w]`` float32.
    """
    network, _ = network_of(model, "keyframe", "model")
    has_image = FIRST_FRAME in positive[0][1]
    if has_image:
        guider = TextImageGuider(model, sampling.guidance_scale, image_guidance)
    else:
        guider = _Guider(model, plan.guided)
        guider.set_cfg(sampling.guidance_scale + 1)
    guider.set_conds(positive, negative)
    B, T, C, h, w = shape
    is_picture = network.config.family == "1.1" and not has_image
    source = SeededNoise(stage_seeds(seed, numbers, PICTURE if is_picture else KEYFRAMES))
    noise = source.normal((B * T, C, h, w)).unflatten(0, (B, T)).transpose(1, 2).contiguous()
    schedule = sampling_schedule(sampling, network.config, plan)
    out = guider.sample(
        noise, torch.zeros_like(noise), DDPMSampler(numbers, schedule), schedule.sigmas.float(),
        callback=preview_callback(model, sampling.steps), seed=seed,
    )  # fmt: skip
    return out.movedim(1, 2)


def _sample(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    *,
    numbers: Sequence[int] | None = None,
    schedule: Schedule | None = None,
) -> Tensor:
    """Run the engine's loop in core's units: ``x`` is ``sqrt(1 + sigma^2)`` times the engine's."""
    if len(sigmas) < 2:
        # No step is asked for.
        return x
    extra_args = dict(extra_args or {})
    seed = int(extra_args.get("seed") or 0)
    schedule = schedule or make_schedule_from_sigmas(sigmas)
    B, C, T, h, w = x.shape
    guider = getattr(model, "inner_model", None)
    conds = [entry for entries in getattr(guider, "conds", {}).values() for entry in entries]
    first_frames = [FirstFrame(entry[FIRST_FRAME]) for entry in conds if FIRST_FRAME in entry]
    inner = getattr(guider, "inner_model", None)
    is_v11 = isinstance(inner, CoreModel) and inner.network_config.family == "1.1"
    stream = PICTURE if is_v11 and not first_frames else KEYFRAMES
    source = SeededNoise(stage_seeds(seed, B if numbers is None else numbers, stream))
    # Core has drawn the start by itself; what the steps draw comes after the start in the engine's stream.
    draw_start(source, (B, T, C, h, w), x, next(iter(first_frames), None))
    scales = (1 + sigmas.cpu().double().square()).sqrt().tolist()
    ones = x.new_ones(B)

    def predict(frames: Tensor, step: int) -> Tensor:
        clip = frames.unflatten(0, (B, T)).transpose(1, 2)
        return model(clip * scales[step], sigmas[step] * ones, **extra_args).transpose(1, 2).flatten(0, 1)

    def report(step: int, total: int, denoised: Tensor) -> None:
        if callback is not None:
            shown = denoised.unflatten(0, (B, T)).transpose(1, 2)
            sigma = sigmas[step - 1]
            callback({"x": shown, "i": step - 1, "sigma": sigma, "sigma_hat": sigma, "denoised": shown})

    frames = (x / scales[0]).transpose(1, 2).flatten(0, 1)
    frames = sample_latents(
        predict,
        frames,
        schedule,
        source,
        predicted="denoised",
        threshold="none",
        callback=report,
    )
    return (frames * scales[-1]).unflatten(0, (B, T)).transpose(1, 2).to(torch.float32)
