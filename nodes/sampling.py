"""Sampling nodes: the releases' keyframe sampling in one node, and the same taken apart for core's samplers."""

from typing import Any

import torch

from ..ff_kernels.sampling.noise import KEYFRAMES, PICTURE, SeededNoise, stage_seeds
from ..ff_kernels.stages.keyframes import sample_keyframes, sample_picture
from ..ff_kernels.stages.presets import RELEASED
from ..ff_kernels.stages.releases import DEMO_GUIDANCE_SCALE, RELEASES, V10, V11
from ..ff_kernels.stages.run import Run, sampling_schedule
from ._api import io
from ._compat import mm, resize_empty
from .adapters.clips import numbers_of
from .adapters.conditioner import LoadedToPrepare
from .adapters.first_frame import first_frame_of
from .adapters.guider import TextImageGuider, ddpm_sampler, sample_in_core
from .adapters.latent import PASSES, Conditioning, as_latent, latent_frames, only_entry, with_decoder
from .adapters.model import compute_dtype, network_of
from .adapters.progress import StepReport
from .adapters.runs import is_bare
from .adapters.text import text_of
from .widgets import (
    ALIASES,
    CUSTOM,
    chosen_steps,
    decodes_narrow,
    guidance_input,
    image_guidance_input,
    preset_input,
    seed_input,
    solver_input,
    steps_input,
)


class KeyframeSampler(io.ComfyNode):
    """Keyframes exactly as the release samples them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesKeyframeSampler",
            display_name="FusionFrames Keyframe Sampler",
            category="FusionFrames/sampling",
            description="Samples the keyframes exactly as the loaded release does: schedule, guidance, thresholding "
            "and noise. With release 1.1, one keyframe and no first frame it draws a picture from text.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="Keyframe U-Net from FusionFrames Load Model."),
                io.Conditioning.Input("positive", tooltip="From FusionFrames Text Encode or Image to Video."),
                io.Conditioning.Input("negative", tooltip="From the same node as positive."),
                io.Latent.Input(
                    "latent", tooltip="Size and number of keyframes; what it holds is replaced by noise entirely."
                ),
                seed_input(),
                steps_input(),
                guidance_input(
                    f"Text guidance w; the releases use {V10.keyframe.guidance_scale:g}. Text alone is mixed as "
                    "(w + 1) * positive - w * negative, so core's cfg is w + 1. The demo model wants "
                    f"{DEMO_GUIDANCE_SCALE:g}."
                ),
                image_guidance_input("Weight of the first frame, release 1.1 only"),
                preset_input(),
                solver_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Keyframes [B, 4, T, h, w]")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent: dict[str, Any],
        seed: int = 0,
        steps: int = V10.keyframe.steps,
        guidance_scale: float = V10.keyframe.guidance_scale,
        image_guidance: float = V11.image_guidance,
        preset: str = CUSTOM,
        solver: str = RELEASED,
    ) -> io.NodeOutput:
        """Sample."""
        network, core = network_of(model, "keyframe", "model")
        steps, plan = chosen_steps(preset, solver, steps, RELEASES[network.config.family], "keyframe")
        frames = latent_frames({**latent, "samples": resize_empty(model, latent)}, "latent")
        clips, keyframes, channels, *size = frames.shape
        like = torch.empty(0, device=model.load_device, dtype=compute_dtype(model))
        text, unconditional = (
            text_of(entry, core.null_embedding, network.config.context_dim, clips, name, like)
            for entry, name in ((positive, "positive"), (negative, "negative"))
        )
        _, options = only_entry(positive, "positive")
        first_frame = first_frame_of("positive", options, network.config.family, tuple(frames.shape), image_guidance)
        is_picture = network.config.family == "1.1" and first_frame is None
        branches = 2 if first_frame is None else 3
        memory = model.memory_required([branches * clips, channels, keyframes, *size])
        numbers = numbers_of({**latent, "samples": frames})
        run = Run(
            SeededNoise(stage_seeds(seed, numbers, PICTURE if is_picture else KEYFRAMES)),
            callback=StepReport(model, steps, clips=clips),
            preparing=LoadedToPrepare(model, memory),
            plan=plan,
        )
        shared = {"size": tuple(size), "guidance_scale": guidance_scale, "steps": steps}
        with torch.inference_mode():
            if not is_bare(model, positive, negative):
                out = sample_in_core(
                    model, positive, negative, frames.shape, seed=seed, numbers=numbers,
                    sampling=RELEASES[network.config.family].keyframe.changed(steps, guidance_scale),
                    plan=plan, image_guidance=image_guidance,
                )  # fmt: skip
            elif is_picture:
                out = sample_picture(network, text, unconditional, run, **shared)[:, None]
            else:
                out = sample_keyframes(
                    network, text, unconditional, run, keyframes=keyframes, first_frame=first_frame, **shared
                )
        kept = {key: value for key, value in latent.items() if key != PASSES}
        latents = as_latent(out.to(mm.intermediate_device()), kept)
        return io.NodeOutput(with_decoder(latents, is_narrow=decodes_narrow(preset)))


class Schedule(io.ComfyNode):
    """Noise levels of a release's keyframe run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesSchedule",
            display_name="FusionFrames Schedule",
            category="FusionFrames/sampling",
            description="The noise levels of the release's own run, or of fewer steps that hold, for SamplerCustom and "
            "SamplerCustomAdvanced.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="Keyframe U-Net; its release decides the schedule."),
                steps_input(),
                preset_input(),
                solver_input(),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="steps + 1 falling noise levels, the last is 0.")],
        )

    @classmethod
    def execute(
        cls, model: Any, steps: int = V10.keyframe.steps, preset: str = CUSTOM, solver: str = RELEASED
    ) -> io.NodeOutput:
        """Return the levels."""
        network, _ = network_of(model, "keyframe", "model")
        release = RELEASES[network.config.family]
        steps, plan = chosen_steps(preset, solver, steps, release, "keyframe")
        return io.NodeOutput(sampling_schedule(release.keyframe.changed(steps), network.config, plan).sigmas.float())


class DDPM(io.ComfyNode):
    """The releases' ancestral sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesDDPM",
            display_name="FusionFrames DDPM",
            category="FusionFrames/sampling",
            description="The sampler of both releases, for SamplerCustom and SamplerCustomAdvanced. With FusionFrames "
            "Schedule and the same start it gives what FusionFrames Keyframe Sampler gives.",
            search_aliases=ALIASES,
            inputs=[],
            outputs=[io.Sampler.Output(display_name="sampler")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Return the sampler."""
        return io.NodeOutput(ddpm_sampler())


class DualGuider(io.ComfyNode):
    """Text and image guidance of release 1.1."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesDualGuider",
            display_name="FusionFrames Dual Guider",
            category="FusionFrames/sampling",
            description="Guidance by text and by the first frame, release 1.1, for SamplerCustomAdvanced: "
            "(1 - wi) * neither + (wi - w) * first frame + w * both.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="Keyframe U-Net of release 1.1."),
                io.Conditioning.Input("positive", tooltip="From FusionFrames Image to Video."),
                io.Conditioning.Input("negative", tooltip="From FusionFrames Image to Video."),
                guidance_input(f"Text guidance w; the release uses {V11.keyframe.guidance_scale:g}."),
                image_guidance_input("First-frame guidance wi"),
            ],
            outputs=[io.Guider.Output(display_name="guider")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        guidance_scale: float = V10.keyframe.guidance_scale,
        image_guidance: float = V11.image_guidance,
    ) -> io.NodeOutput:
        """Return the guider."""
        guider = TextImageGuider(model, guidance_scale, image_guidance)
        guider.set_conds(positive, negative)
        return io.NodeOutput(guider)
