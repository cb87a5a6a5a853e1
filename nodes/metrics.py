"""Nodes that measure videos: against a reference, over time, against their prompt."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ff_kernels.errors import ShapeError
from ..ff_kernels.media.pictures import to_rgb
from ..ff_kernels.metrics.clipsim import clipsim
from ..ff_kernels.metrics.consistency import BRIGHTNESS_FLICKER, NEIGHBOUR, PIXEL_FLICKER, WARPING
from ..ff_kernels.metrics.frames import compare_frames, measure_consistency
from ..ff_kernels.metrics.plots import plot_frames
from ..ff_kernels.metrics.tables import Measure, frame_table, measure_frames
from ._api import io
from ._compat import check_interrupted, progress_bar, show_text
from .adapters.clip_space import frame_encoder, prompt_encoder
from .widgets import ALIASES

METRIC_ALIASES = [*ALIASES, "metric", "measure", "evaluate"]


def _frames(images: Tensor, name: str) -> Tensor:
    """Return an IMAGE ``[T, H, W, C]`` as ``[T, 3, H, W]`` in 0..1."""
    # What lies behind transparent pixels would count as their difference.
    colours = images[..., :-1] if images.shape[-1] in (2, 4) else images
    return to_rgb(colours, name).movedim(-1, 1)


def _progress(total: int) -> Callable[[int, int], None]:
    """Return a report of frames done for core's progress bar, which also heeds the cancel button."""
    bar = progress_bar(total)

    def report(done: int, total: int) -> None:
        bar.update_absolute(done, total)
        check_interrupted()

    return report


def _plot(measures: Sequence[Measure]) -> Tensor:
    return plot_frames(measures)[None]


def _plot_output() -> io.Image.Output:
    return io.Image.Output(display_name="plot", tooltip="One panel per measure, frames to the right.")


def _table_output() -> io.String.Output:
    return io.String.Output(display_name="table", tooltip="Means and one line per frame as text, for Preview as Text.")


class Compare(io.ComfyNode):
    """Two videos to PSNR, SSIM and MSE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesCompare",
            display_name="FusionFrames Compare",
            category="FusionFrames/metrics",
            description="Measures frame by frame how close a video is to a reference of the same size and length: "
            "PSNR, SSIM and MSE, as curves, as text and as numbers.",
            search_aliases=[*METRIC_ALIASES, "psnr", "ssim", "mse", "compare videos"],
            inputs=[
                io.Image.Input("reference", tooltip="The true or better frames."),
                io.Image.Input("images", tooltip="The frames to judge, as many and of the same size."),
            ],
            outputs=[
                _plot_output(),
                _table_output(),
                io.Float.Output(
                    display_name="psnr",
                    tooltip="Mean over frames in dB, higher is closer; without frames that equal their reference, "
                    "infinite if all do.",
                ),
                io.Float.Output(display_name="ssim", tooltip="Mean over frames, -1 to 1, 1 for equal frames."),
                io.Float.Output(display_name="mse", tooltip="Mean over frames of squared differences, 0 to 1."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, reference: Tensor, images: Tensor) -> io.NodeOutput:
        """Compare."""
        if reference.shape[:3] != images.shape[:3]:
            wanted, found = (f"{len(x)} frames of {x.shape[2]} x {x.shape[1]} pixels" for x in (reference, images))
            raise ShapeError(
                f"images expected {wanted} as in reference, got {found}: cut with Get Image from Batch, scale with "
                "Upscale Image"
            )
        with torch.inference_mode():
            measures = compare_frames(
                _frames(reference, "reference"),
                _frames(images.to(reference.device), "images"),
                progress=_progress(len(images)),
            )
        psnr, ssim, mse = (measure.mean for measure in measures)
        show_text(cls.hidden.unique_id, f"PSNR {psnr:.2f} dB, SSIM {ssim:.4f}, MSE {mse:.3g}")
        return io.NodeOutput(_plot(measures), frame_table(measures), psnr, ssim, mse)


class TemporalConsistency(io.ComfyNode):
    """A video to how steady it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesTemporalConsistency",
            display_name="FusionFrames Temporal Consistency",
            category="FusionFrames/metrics",
            description="Measures how steady a video is over time, without a reference and without a network. All "
            "numbers are 0 for a still video; compare them with those of a true video of the same motion.",
            search_aliases=[*METRIC_ALIASES, "flicker", "warping error", "smoothness"],
            inputs=[io.Image.Input("images", tooltip="Three or more frames of one video, without a cut.")],
            outputs=[
                _plot_output(),
                _table_output(),
                io.Float.Output(
                    display_name="warping_error",
                    tooltip="Mean squared difference of each frame and the one before moved along block-matched "
                    "motion, 0 to 1.",
                ),
                io.Float.Output(
                    display_name="neighbour_mse",
                    tooltip="Mean squared difference of neighbouring frames, 0 to 1; grows with motion.",
                ),
                io.Float.Output(
                    display_name="brightness_flicker",
                    tooltip="Uneven change of the mean brightness over three frames, 0 to 2; even fading counts 0.",
                ),
                io.Float.Output(
                    display_name="pixel_flicker",
                    tooltip="Uneven change of each pixel's brightness over three frames, 0 to 2.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images: Tensor) -> io.NodeOutput:
        """Measure."""
        with torch.inference_mode():
            measures = measure_consistency(_frames(images, "images"), progress=_progress(len(images)))
        means = {measure.name: measure.mean for measure in measures}
        values = [means[name] for name in (WARPING, NEIGHBOUR, BRIGHTNESS_FLICKER, PIXEL_FLICKER)]
        show_text(cls.hidden.unique_id, f"warping error {values[0]:.3g}, pixel flicker {values[3]:.3g}")
        return io.NodeOutput(_plot(measures), frame_table(measures), *values)


class ClipSim(io.ComfyNode):
    """A video and its prompt to CLIPSIM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesClipSim",
            display_name="FusionFrames CLIPSIM",
            category="FusionFrames/metrics",
            description="Measures how well the frames fit a prompt: the cosine of each frame's and the prompt's "
            "embedding in a CLIP. Text and image side must be those of one CLIP, with their projections.",
            search_aliases=[*METRIC_ALIASES, "clip score", "clipsim", "prompt similarity"],
            inputs=[
                io.Image.Input("images", tooltip="Frames of a video; the middle square of each is seen."),
                io.Clip.Input(
                    "clip",
                    tooltip="Text side of the CLIP with its projection, from Load CLIP: the whole CLIP file, such as "
                    "model.safetensors of openai/clip-vit-large-patch14. Text encoders of this pack are no CLIP.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="Image side of the same CLIP, from Load CLIP Vision; the same file fits there.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip="What the frames should show, in English; of a long text the first 75 tokens count.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="clipsim", tooltip="Mean cosine over frames, -1 to 1; compare only within one CLIP."
                ),
                io.String.Output(
                    display_name="per_frame", tooltip="Mean and one line per frame as text, for Preview as Text."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images: Tensor, clip: Any, clip_vision: Any, prompt: str = "") -> io.NodeOutput:
        """Encode both and compare."""
        encode_prompt, encode_frames = prompt_encoder(clip), frame_encoder(clip_vision)
        with torch.inference_mode():
            frames = _frames(images, "images")
            curve = clipsim(frames, prompt, encode_frames, encode_prompt, progress=_progress(len(frames)))
        measure = measure_frames("CLIPSIM", "", curve)
        show_text(cls.hidden.unique_id, f"CLIPSIM {measure.mean:.4f}")
        return io.NodeOutput(measure.mean, frame_table([measure]))
