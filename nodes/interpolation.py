"""Interpolation nodes: three frames into every gap, or missing frames of any sequence."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ff_kernels.errors import InputError, ShapeError
from ..ff_kernels.sampling.noise import SeededNoise, pass_stream, stage_seeds
from ..ff_kernels.stages.interpolation import GAP_STAGES, SKIP_FRAMES
from ..ff_kernels.stages.masking import fill_missing, find_missing_runs, frame_mask
from ..ff_kernels.stages.run import Run, Text
from ._api import io
from ._compat import mm
from .adapters.conditioner import Loaded
from .adapters.latent import Conditioning, as_latent, latent_frames
from .adapters.model import CoreModel, compute_dtype, network_of
from .adapters.networks import GAP_NETWORKS, EngineView
from .adapters.progress import StepReport
from .adapters.runs import gap_sigmas, is_bare, run_in_core
from .adapters.text import text_of
from .widgets import ALIASES, check_steps, seed_input, steps_input


def _inputs() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="Interpolation U-Net from FusionFrames Load Model."),
        io.Latent.Input("latent", tooltip="Frames [B, 4, T, h, w] of MoVQ; they pass through bit for bit."),
        seed_input(),
        steps_input("Sampling steps of each pass, 1 to 1000; release 1.0 and the demo use 50, release 1.1 uses 10."),
        io.Float.Input(
            "guidance_scale",
            default=0.25,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip="Guidance w; release 1.0 uses 0.25, release 1.1 0.5. More than about 0.5 collapses onto the "
            "keyframes.",
        ),
    ]


def _text_input() -> Any:
    return io.Conditioning.Input(
        "positive", optional=True, tooltip="The prompt; needed by release 1.1, not read by release 1.0."
    )


class _Passes:
    """Interpolation passes over the network of a MODEL, loaded and checked."""

    def __init__(
        self,
        model: Any,
        frames: Tensor,
        positive: Conditioning | None,
        *,
        seed: int,
        steps: int,
        guidance_scale: float,
        stages: int,
    ) -> None:
        check_steps(steps)
        self.network, core = network_of(model, GAP_NETWORKS, "model")
        self.model, self.clips, self.device = model, frames.shape[0], model.load_device
        like = torch.empty(0, device=self.device, dtype=compute_dtype(model))
        self.null = _null_embedding(core).to(like)
        self.text = _text(self.network, core, positive, self.clips, like)
        self.seed, self.options = seed, {"steps": steps, "guidance_scale": guidance_scale}
        self.report = StepReport(model, steps * stages, clips=self.clips)
        multiple = self.network.config.side_multiple
        if any(side % multiple for side in frames.shape[-2:]):
            raise ShapeError(
                f"latent expected sides that are multiples of {multiple}, got {list(frames.shape[-2:])}: encode "
                "frames of "
                f"another size"
            )

        # Per gap the interpolation runs one sample of three frames, the baseline five samples.
        channels = 5 * frames.shape[2] if self.network.config.stage == "masked" else 3 * frames.shape[2]
        gaps = [2 * frames.shape[0], channels, frames.shape[1], *frames.shape[-2:]]
        self.loaded = Loaded(model, model.memory_required(gaps))

    def __call__(self, frames: Tensor, passes: int) -> Tensor:
        """Return ``[B, T', 4, h, w]`` of ``[B, T, 4, h, w]``."""
        frames = frames.to(self.device)
        with torch.inference_mode():
            for i in range(passes):
                run = partial(self.run_pass, frames, i)
                if is_bare(self.model):
                    frames = run()
                else:
                    shape = [self.clips, frames.shape[2], 3 * (frames.shape[1] - 1), *frames.shape[-2:]]
                    sigmas = gap_sigmas(self.network.config, self.options["steps"])
                    frames = run_in_core(self.model, self.network, sigmas, shape, run)
        return frames.to(mm.intermediate_device())

    def run_pass(self, frames: Tensor, index: int) -> Tensor:
        """Run one pass, the first one having index 0."""
        noise = SeededNoise(stage_seeds(self.seed, self.clips, pass_stream(index)))
        return GAP_STAGES[self.network.config.stage](
            self.network,
            frames,
            self.text,
            self.null,
            Run(noise, callback=self.report, conditioner=self.loaded),
            skip_frames=SKIP_FRAMES[min(index, len(SKIP_FRAMES) - 1)],
            **self.options,
        )


def _null_embedding(core: CoreModel) -> Tensor:
    if core.null_embedding is None:
        raise InputError(
            "model expected a null embedding in its file, found none: convert the authors' file, which holds one"
        )
    return core.null_embedding


def _text(network: EngineView, core: CoreModel, positive: Conditioning | None, clips: int, like: Tensor) -> Text | None:
    if network.config.family == "1.0":
        return None
    if positive is None:
        raise InputError("positive expected a prompt for release 1.1, got none: connect FusionFrames Text Encode")
    return text_of(positive, core.null_embedding, network.config.context_dim, clips, "positive", like)


class Interpolate(io.ComfyNode):
    """T frames to 4T - 3 per pass."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesInterpolate",
            display_name="FusionFrames Interpolate",
            category="FusionFrames/interpolation",
            description="Fills three new frames into every gap: T frames become 4T - 3, or 16T - 15 with two passes. "
            "The frames you give stay as they are.",
            search_aliases=[*ALIASES, "inbetween"],
            inputs=[
                *_inputs(),
                io.Int.Input("passes", default=1, min=1, max=2, tooltip="1: four times the frames, 2: sixteen times."),
                io.Float.Input(
                    "fps",
                    default=2.0,
                    min=0.01,
                    max=240.0,
                    step=0.01,
                    tooltip="Frames per second of the frames given; keyframes of the releases have 2.",
                ),
                _text_input(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.Float.Output(display_name="fps", tooltip="4 or 16 times the rate given, for Create Video."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        guidance_scale: float,
        passes: int,
        fps: float,
        positive: Conditioning | None = None,
    ) -> io.NodeOutput:
        """Interpolate."""
        network_of(model, GAP_NETWORKS, "model")
        if passes not in (1, 2):
            raise InputError(f"passes expected 1 or 2, got {passes}: chain two nodes for more")
        frames = latent_frames(latent, "latent")
        if frames.shape[1] < 2:
            raise InputError(
                f"latent expected two or more frames to interpolate between, got {frames.shape[1]}: sample or encode "
                "more"
            )
        run = _Passes(model, frames, positive, seed=seed, steps=steps, guidance_scale=guidance_scale, stages=passes)
        return io.NodeOutput(as_latent(run(frames, passes), latent), float(fps * 4**passes))


class MaskedInterpolate(io.ComfyNode):
    """Missing frames of any sequence."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesMaskedInterpolate",
            display_name="FusionFrames Masked Interpolate",
            category="FusionFrames/interpolation",
            description="Makes the frames that the latent's noise mask marks with 1 from their known neighbours. Gaps "
            "may have any length; known frames stay as they are. First and last frame must be known.",
            search_aliases=[*ALIASES, "inbetween", "masked frame interpolation"],
            inputs=[*_inputs(), _text_input()],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        guidance_scale: float,
        positive: Conditioning | None = None,
    ) -> io.NodeOutput:
        """Fill the gaps."""
        network_of(model, GAP_NETWORKS, "model")
        if "noise_mask" not in latent:
            raise InputError(
                "latent expected a noise mask with 1 on missing frames, got none: connect Set Latent Noise Mask"
            )
        frames = latent_frames(latent, "latent")
        missing = frame_mask(latent["noise_mask"], frames.shape[1])
        stages = sum(run.passes for run in find_missing_runs(missing))
        run = _Passes(model, frames, positive, seed=seed, steps=steps, guidance_scale=guidance_scale, stages=stages)
        return io.NodeOutput(as_latent(fill_missing(frames, missing, run), latent))
