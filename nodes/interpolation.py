"""Interpolation nodes: three frames into every gap, or missing frames of any sequence."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ff_kernels.errors import InputError
from ..ff_kernels.sampling.noise import Noise
from ..ff_kernels.stages.interpolation import GAP_STAGES, interpolate_passes
from ..ff_kernels.stages.masking import Fill, fill_missing, find_missing_runs, frame_mask
from ..ff_kernels.stages.presets import RELEASED
from ..ff_kernels.stages.releases import RELEASES, V10, V11
from ..ff_kernels.stages.run import Run, Text, sampling_schedule
from ._api import io
from ._compat import mm
from .adapters.clips import numbers_of
from .adapters.conditioner import LoadedToPrepare
from .adapters.latent import PASSES, Conditioning, as_latent, latent_frames, with_decoder
from .adapters.model import CoreModel, compute_dtype, network_of
from .adapters.networks import EngineView
from .adapters.progress import StepReport
from .adapters.runs import is_bare, run_in_core
from .adapters.text import text_of
from .widgets import (
    ALIASES,
    CUSTOM,
    chosen_steps,
    decodes_narrow,
    fps_input,
    preset_input,
    seed_input,
    solver_input,
    steps_input,
)


def _inputs() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="Interpolation U-Net from FusionFrames Load Model."),
        io.Latent.Input("latent", tooltip="Frames [B, 4, T, h, w] of MoVQ; they pass through bit for bit."),
        seed_input(),
        steps_input(
            f"Sampling steps of each pass, 1 to 1000; release 1.0 and the demo use {V10.interpolation.steps}, release "
            f"1.1 uses {V11.interpolation.steps}."
        ),
        io.Float.Input(
            "guidance_scale",
            default=V10.interpolation.guidance_scale,
            optional=True,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip=f"Guidance w; release 1.0 uses {V10.interpolation.guidance_scale:g}, release 1.1 "
            f"{V11.interpolation.guidance_scale:g}. More than about 0.5 collapses onto the keyframes.",
        ),
    ]


def _text_input() -> Any:
    return io.Conditioning.Input(
        "positive", optional=True, tooltip="The prompt; needed by release 1.1, not read by release 1.0."
    )


def _passes(
    model: Any, latent: dict[str, Any], positive: Conditioning | None, passes: int, *, seed: int,
    guidance_scale: float, preset: str, solver: str, steps: int, first: int = 0,
) -> Fill:  # fmt: skip
    """Return interpolation by the network of a MODEL, of frames such as these and ``passes`` in all."""
    frames = latent_frames(latent, "latent")
    network, core = network_of(model, tuple(GAP_STAGES), "model")
    steps, plan = chosen_steps(preset, solver, steps, RELEASES[network.config.family], "interpolation")
    if core.null_embedding is None:
        raise InputError(
            "model expected a null embedding in its file, found none: convert the authors' file, which holds one"
        )
    like = torch.empty(0, device=model.load_device, dtype=compute_dtype(model))
    text = _text(network, core, positive, frames.shape[0], like)
    report = StepReport(model, steps * passes, clips=frames.shape[0])

    def make_run(noise: Noise, samples: int) -> Run:
        memory = model.memory_required([samples, *frames.shape[2:]])
        return Run(noise, callback=report, preparing=LoadedToPrepare(model, memory), plan=plan)

    given = {"seed": seed, "numbers": numbers_of(latent), "guidance_scale": guidance_scale, "steps": steps}
    sampling = RELEASES[network.config.family].interpolation.changed(steps)
    sigmas = sampling_schedule(sampling, network.config, plan).sigmas.float()

    def run_pass(frames: Tensor, index: int) -> Tensor:
        null = core.null_embedding.to(like)
        return interpolate_passes(network, frames, text, null, make_run, passes=1, first=index, **given)

    def fill(frames: Tensor, passes: int) -> Tensor:
        frames = frames.to(like.device)
        with torch.inference_mode():
            for index in range(first, first + passes):
                run = partial(run_pass, frames, index)
                if is_bare(model):
                    frames = run()
                else:
                    clips, num_frames, *size = frames.shape
                    frames = run_in_core(model, network, sigmas, [clips, size[0], 3 * (num_frames - 1), *size[1:]], run)
        return frames.to(mm.intermediate_device())

    return fill


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
                io.Int.Input(
                    "passes",
                    default=1,
                    optional=True,
                    min=1,
                    max=2,
                    tooltip="1: four times the frames, 2: sixteen times.",
                ),
                fps_input("Frames per second of the frames given; keyframes of the releases have 2."),
                _text_input(),
                preset_input(),
                solver_input(),
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
        seed: int = 0,
        steps: int = V10.keyframe.steps,
        guidance_scale: float = V10.interpolation.guidance_scale,
        passes: int = 1,
        fps: float = 2.0,
        positive: Conditioning | None = None,
        preset: str = CUSTOM,
        solver: str = RELEASED,
    ) -> io.NodeOutput:
        """Interpolate."""
        network_of(model, tuple(GAP_STAGES), "model")
        if passes not in (1, 2):
            raise InputError(f"passes expected 1 or 2, got {passes}: chain two nodes for more")
        frames = latent_frames(latent, "latent")
        if frames.shape[1] < 2:
            raise InputError(
                f"latent expected two or more frames to interpolate between, got {frames.shape[1]}: sample or encode "
                "more"
            )
        done = int(latent.get(PASSES, 0))
        options = {"seed": seed, "steps": steps, "guidance_scale": guidance_scale, "preset": preset, "solver": solver}
        fill = _passes(model, latent, positive, passes, first=done, **options)
        out = {**as_latent(fill(frames, passes), latent), PASSES: done + passes}
        return io.NodeOutput(with_decoder(out, is_narrow=decodes_narrow(preset)), float(fps * 4**passes))


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
            inputs=[*_inputs(), _text_input(), preset_input(), solver_input()],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        latent: dict[str, Any],
        seed: int = 0,
        steps: int = V10.keyframe.steps,
        guidance_scale: float = V10.interpolation.guidance_scale,
        positive: Conditioning | None = None,
        preset: str = CUSTOM,
        solver: str = RELEASED,
    ) -> io.NodeOutput:
        """Fill the gaps."""
        network_of(model, tuple(GAP_STAGES), "model")
        if "noise_mask" not in latent:
            raise InputError(
                "latent expected a noise mask with 1 on missing frames, got none: connect Set Latent Noise Mask"
            )
        frames = latent_frames(latent, "latent")
        missing = frame_mask(latent["noise_mask"], frames.shape[1])
        passes = sum(run.passes for run in find_missing_runs(missing))
        options = {"seed": seed, "steps": steps, "guidance_scale": guidance_scale, "preset": preset, "solver": solver}
        fill = _passes(model, latent, positive, passes, **options)
        out = as_latent(fill_missing(frames, missing, fill), latent)
        return io.NodeOutput(with_decoder(out, is_narrow=decodes_narrow(preset)))
