"""Guidance and sampling of the releases as core's GUIDER and SAMPLER."""

from typing import Any

import torch
from torch import Tensor

from ...ff_kernels.errors import InputError
from ...ff_kernels.ops import mix_branches
from ...ff_kernels.sampling.guidance import text_image_weights
from ...ff_kernels.sampling.noise import KEYFRAMES, PICTURE, SeededNoise, stage_seeds
from ...ff_kernels.sampling.samplers import sample_latents
from ...ff_kernels.sampling.schedule import make_schedule_from_sigmas
from ...ff_kernels.stages.keyframes import FirstFrame, draw_start
from .._compat import KSAMPLER, CFGGuider, calc_cond_batch
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
        neither, image, both = calc_cond_batch(
            self.inner_model,
            [self.conds["negative"], self.conds["middle"], self.conds["positive"]],
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


class _FromNoise(KSAMPLER):
    """Sampling whose start is noise alone, even where a shorter table starts below the largest level."""

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        """Return True."""
        return True


class DDPMSampler(KSAMPLER):
    """Ancestral sampling of the releases, through whatever noise levels it is given."""

    def sample(self, model_wrap: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run; an empty latent starts from noise alone, another one from itself with noise on it."""
        latent = kwargs.get("latent_image", args[3] if len(args) > 3 else None)
        is_empty = latent is None or not bool(torch.count_nonzero(latent))
        run = _FromNoise(_sample) if is_empty else KSAMPLER(_sample)
        return run.sample(model_wrap, sigmas, *args, **kwargs)


def ddpm_sampler() -> DDPMSampler:
    """Return the SAMPLER."""
    return DDPMSampler(_sample)


def _sample(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
) -> Tensor:
    """Run the engine's loop in core's units: ``x`` is ``sqrt(1 + sigma^2)`` times the engine's."""
    extra_args = dict(extra_args or {})
    seed = int(extra_args.get("seed") or 0)
    schedule = make_schedule_from_sigmas(sigmas)
    B, C, T, h, w = x.shape
    guider = getattr(model, "inner_model", None)
    conds = [entry for entries in getattr(guider, "conds", {}).values() for entry in entries]
    first_frames = [FirstFrame(entry[FIRST_FRAME]) for entry in conds if FIRST_FRAME in entry]
    inner = getattr(guider, "inner_model", None)
    is_v11 = isinstance(inner, CoreModel) and inner.network_config.family == "1.1"
    source = SeededNoise(stage_seeds(seed, B, PICTURE if is_v11 and not first_frames else KEYFRAMES))
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
