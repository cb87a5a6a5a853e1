"""Sampling nodes: the releases' keyframe sampling in one node, and the same taken apart for core's samplers."""

from typing import Any

import torch

from ..ff_kernels.errors import InputError
from ..ff_kernels.sampling.noise import KEYFRAMES, PICTURE, SeededNoise, stage_seeds
from ..ff_kernels.stages.keyframes import sample_keyframes_v10, sample_keyframes_v11, sample_picture_v11
from ..ff_kernels.stages.run import Run
from ._api import io
from ._compat import mm, resize_empty
from .adapters.conditioner import Loaded
from .adapters.guider import TextImageGuider, ddpm_sampler, keyframe_sigmas, sample_in_core
from .adapters.latent import FIRST_FRAME, MOTION_SCORE, NOISE_LEVEL, Conditioning, as_latent, latent_frames, only_entry
from .adapters.model import (
    DEFAULT_MOTION_SCORE,
    DEFAULT_NOISE_LEVEL,
    CoreModel,
    compute_dtype,
    first_frame_refusal,
    image_refusal,
    network_of,
    require_frame,
)
from .adapters.networks import EngineView
from .adapters.progress import StepReport
from .adapters.runs import is_bare
from .adapters.text import text_of
from .widgets import ALIASES, check_steps, guidance_input, image_guidance_input, seed_input, steps_input

# Release 1.0 spreads 180 time units over the keyframes.
MAX_FRAMES_V10 = 180


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
                    "Text guidance w; the releases use 5. Text alone is mixed as (w + 1) * positive - w * negative, so "
                    "core's cfg is w + 1. The demo model wants 0.2."
                ),
                image_guidance_input("Weight of the first frame, release 1.1 only; the release uses 2."),
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
        seed: int,
        steps: int,
        guidance_scale: float,
        image_guidance: float = 2.0,
    ) -> io.NodeOutput:
        """Sample."""
        check_steps(steps)
        network, core = network_of(model, "keyframe", "model")
        frames = latent_frames({**latent, "samples": resize_empty(model, latent)}, "latent")
        job = _Job(network, core, positive, negative, frames, model)
        report = StepReport(model, steps, clips=frames.shape[0])
        options = {"guidance_scale": guidance_scale, "steps": steps}
        with torch.inference_mode():
            if not is_bare(model, positive, negative):
                shape = list(frames.transpose(1, 2).shape)
                scales = {"guidance_scale": guidance_scale, "image_guidance": image_guidance}
                out = sample_in_core(model, positive, negative, shape, seed=seed, steps=steps, **scales)
            elif network.config.family == "1.0":
                out = job.sample_v10(seed, report, options)
            else:
                out = job.sample_v11(seed, report, {**options, "image_guidance": image_guidance})
        return io.NodeOutput(as_latent(out.to(mm.intermediate_device()), latent))


class _Job:
    """One run: inputs checked and on the device."""

    def __init__(
        self,
        network: EngineView,
        core: CoreModel,
        positive: Conditioning,
        negative: Conditioning,
        frames: torch.Tensor,
        model: Any,
    ) -> None:
        self.network, self.device = network, model.load_device
        self.clips, self.num_frames = frames.shape[:2]
        self.size = tuple(frames.shape[-2:])
        like = torch.empty(0, device=self.device, dtype=compute_dtype(model))
        self.options = only_entry(positive, "positive")[1]
        self.text, self.unconditional = (
            text_of(entry, core.null_embedding, network.config.context_dim, self.clips, name, like)
            for entry, name in ((positive, "positive"), (negative, "negative"))
        )
        self.check()
        batch = [self.branches * self.clips, frames.shape[2], self.num_frames, *self.size]
        self.loaded = Loaded(model, model.memory_required(batch))

    @property
    def branches(self) -> int:
        """Guidance branches that run in one batch."""
        return 3 if FIRST_FRAME in self.options else 2

    def check(self) -> None:
        """Refuse a latent that the network cannot halve, or more frames than it can tell apart."""
        if self.network.config.family == "1.0" and self.num_frames > MAX_FRAMES_V10:
            raise InputError(
                f"latent expected at most {MAX_FRAMES_V10} keyframes for release 1.0, got {self.num_frames}: use "
                "KSampler with Context Windows"
            )
        multiple = self.network.config.side_multiple
        if any(side % multiple for side in self.size):
            raise InputError(
                f"latent expected sides that are multiples of {multiple}, got {list(self.size)}: choose width and "
                f"height as multiples of {multiple} latent positions"
            )

    def run(self, seed: int, stream: int, report: StepReport) -> Run:
        """Return noise and callback of a stage."""
        return Run(SeededNoise(stage_seeds(seed, self.clips, stream)), callback=report, conditioner=self.loaded)

    def sample_v10(self, seed: int, report: StepReport, options: dict[str, Any]) -> torch.Tensor:
        """Sample from text, release 1.0."""
        if FIRST_FRAME in self.options:
            raise InputError(image_refusal("positive"))
        run = self.run(seed, KEYFRAMES, report)
        return sample_keyframes_v10(
            self.network, self.text, self.unconditional, run, size=self.size, num_frames=self.num_frames, **options
        )

    def sample_v11(self, seed: int, report: StepReport, options: dict[str, Any]) -> torch.Tensor:
        """Sample from text and first frame, or a picture from text, release 1.1."""
        first_frame = self.options.get(FIRST_FRAME)
        if first_frame is None:
            if self.num_frames > 1:
                raise InputError(first_frame_refusal("positive", self.num_frames))
            del options["image_guidance"]
            run = self.run(seed, PICTURE, report)
            return sample_picture_v11(
                self.network, self.text, self.unconditional, run, size=self.size, **options
            ).unsqueeze(1)
        require_frame("positive", first_frame, self.clips, self.size)
        return sample_keyframes_v11(
            self.network,
            self.text,
            self.unconditional,
            first_frame.float().to(self.device).expand(self.clips, -1, -1, -1),
            self.run(seed, KEYFRAMES, report),
            num_frames=self.num_frames,
            motion_score=self.options.get(MOTION_SCORE, DEFAULT_MOTION_SCORE),
            noise_level=self.options.get(NOISE_LEVEL, DEFAULT_NOISE_LEVEL),
            **options,
        )


class Schedule(io.ComfyNode):
    """Noise levels of a release's keyframe run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesSchedule",
            display_name="FusionFrames Schedule",
            category="FusionFrames/sampling",
            description="The noise levels of the release's own run, for SamplerCustom and SamplerCustomAdvanced.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="Keyframe U-Net; its release decides the schedule."),
                steps_input(),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="steps + 1 falling noise levels, the last is 0.")],
        )

    @classmethod
    def execute(cls, model: Any, steps: int) -> io.NodeOutput:
        """Return the levels."""
        check_steps(steps)
        network, _ = network_of(model, "keyframe", "model")
        return io.NodeOutput(keyframe_sigmas(network.config.family, steps))


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
                guidance_input("Text guidance w; the release uses 5."),
                image_guidance_input("First-frame guidance wi; the release uses 2."),
            ],
            outputs=[io.Guider.Output(display_name="guider")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        guidance_scale: float,
        image_guidance: float,
    ) -> io.NodeOutput:
        """Return the guider."""
        guider = TextImageGuider(model, guidance_scale, image_guidance)
        guider.set_conds(positive, negative)
        return io.NodeOutput(guider)
