"""Nodes from latents to pictures: decoding in chunks, contact sheets."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ff_kernels.errors import InputError
from ..ff_kernels.media.pictures import to_rgb
from ..ff_kernels.media.sheet import contact_sheet
from ..ff_kernels.stages.decoding import blend_overlap, decode
from ._api import io
from ._compat import check_interrupted, mm, progress_bar
from .adapters.latent import NARROW_DECODER, latent_frames
from .adapters.vae import movq_of
from .widgets import ALIASES, fps_input

AS_RELEASED, BLENDED = "as released", "blended"


class MoVQDecode(io.ComfyNode):
    """Latents to frames, a chunk at a time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesMoVQDecode",
            display_name="FusionFrames MoVQ Decode",
            category="FusionFrames/latent",
            description="Decodes a video latent a few frames at a time, so that memory depends on the chunk and not "
            "on the length of the video. Shows progress and can be cancelled between chunks.",
            search_aliases=ALIASES,
            inputs=[
                io.Vae.Input("vae", tooltip="From FusionFrames Load MoVQ."),
                io.Latent.Input("latent", tooltip="Keyframes or interpolated frames."),
                io.Int.Input(
                    "frames_per_chunk",
                    default=0,
                    optional=True,
                    min=0,
                    max=256,
                    tooltip="Frames decoded at once; 0 splits as the releases do, into chunks of about 4 to 7. Fewer "
                    "need less memory.",
                ),
                io.Combo.Input(
                    "seams",
                    options=[AS_RELEASED, BLENDED],
                    default=AS_RELEASED,
                    optional=True,
                    tooltip="as released: the video decoder of release 1.1 starts anew at every chunk and reads its "
                    "first frame in every attention. blended: chunks overlap by two frames and are cross-faded, each "
                    "frame reads itself.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="One picture per frame; clips one after the other.")
            ],
        )

    @classmethod
    def execute(
        cls, vae: Any, latent: dict[str, Any], frames_per_chunk: int = 0, seams: str = AS_RELEASED
    ) -> io.NodeOutput:
        """Decode."""
        movq = movq_of(vae, ", or use VAE Decode").movq
        clips = latent_frames(latent, "latent")
        is_video = movq.config.is_video
        chunk = frames_per_chunk or None
        largest, memory = vae.decode_needs(clips.shape[1], *clips.shape[-2:], chunk)
        shared_map = is_video and seams == AS_RELEASED
        mm.load_models_gpu([vae.patcher], memory_required=memory)
        total = clips.shape[0] * clips.shape[1]
        bar = progress_bar(total)
        parts: list[Tensor] = []
        with torch.inference_mode():
            for i, clip in enumerate(clips):

                def report(done: int, _: int, before: int = i * clips.shape[1]) -> None:
                    bar.update_absolute(before + done, total)
                    check_interrupted()

                overlap = blend_overlap(len(clip), chunk) if is_video and seams == BLENDED else 0
                clip, decoder = clip.to(vae.device, vae.vae_dtype), movq
                if latent.get(NARROW_DECODER):
                    decoder = vae.narrow.choose(vae, clip, memory=memory, chunk=largest, shared_map=shared_map)
                pixels = decode(decoder, clip, chunk=chunk, shared_map=shared_map, overlap=overlap, should_stop=report)
                parts.append(pixels.movedim(1, -1).to(mm.intermediate_device()))
        return io.NodeOutput(torch.cat(parts))


class Storyboard(io.ComfyNode):
    """Frames to one contact sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesStoryboard",
            display_name="FusionFrames Storyboard",
            category="FusionFrames/image",
            description="All frames on one picture, row by row, each with its time.",
            search_aliases=[*ALIASES, "contact sheet"],
            inputs=[
                io.Image.Input("images", tooltip="Frames of a video."),
                io.Int.Input("columns", default=5, optional=True, min=1, max=64, tooltip="Frames per row."),
                fps_input("Frames per second, for the times."),
            ],
            outputs=[io.Image.Output(display_name="storyboard")],
        )

    @classmethod
    def execute(cls, images: Tensor, columns: int = 5, fps: float = 2.0) -> io.NodeOutput:
        """Draw the sheet."""
        if not fps > 0:
            raise InputError(f"fps expected a positive number of frames per second, got {fps}: keyframes have 2")
        frames = torch.stack([to_rgb(picture, "images") for picture in images])
        sheet = contact_sheet(frames, columns=columns, times=[i / fps for i in range(len(frames))])
        return io.NodeOutput(torch.from_numpy(np.array(sheet)).float()[None] / 255)
