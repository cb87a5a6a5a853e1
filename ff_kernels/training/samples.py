"""Pictures for the person who trains: what the network sees of the clips, and what it draws on the way."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..checkpoints.folder import ModelFiles
from ..checkpoints.loading import Loaded
from ..media.pictures import write_image
from ..media.sheet import contact_sheet
from ..pipeline.pipeline import Pipeline
from ..pipeline.settings import Settings
from ..stages.run import Text
from .batches import Sample, pad_contexts
from .tuning import Tuning

_CAPTION_PX = 22


def captioned_sheet(rows: Sequence[tuple[Tensor, str]]) -> Image.Image:
    """Return rows of frames ``[F, H, W, 3]`` in 0..1 under each other, each with its caption above."""
    strips = [contact_sheet(frames, columns=len(frames)) for frames, _ in rows]
    width = max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, sum(strip.height + _CAPTION_PX for strip in strips)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for strip, (_, caption) in zip(strips, rows, strict=True):
        draw.text((6, top + 3), caption, fill="black", font=ImageFont.load_default(14))
        sheet.paste(strip, (0, top + _CAPTION_PX))
        top += strip.height + _CAPTION_PX
    return sheet


class SampleSheets:
    """Draws prompts with the network in training; of an interpolation, the gaps of the first clips."""

    def __init__(
        self, models: ModelFiles, loaded: Loaded, contexts: Mapping[str, Tensor], samples: Sequence[Sample],
        tuning: Tuning, folder: Path,
    ) -> None:  # fmt: skip
        self.models, self.loaded, self.contexts, self.samples = models, loaded, contexts, samples
        self.tuning, self.folder = tuning, folder

    @torch.no_grad()
    def draw(self, step: int) -> Path:
        """Write a sheet of what the network draws now and return its path; no random number of the training is used."""
        unet = self.loaded.network
        device, dtype = unet.in_layer.weight.device, unet.in_layer.weight.dtype
        pipeline = Pipeline(self.models, device=device, dtype=dtype, parity="strict", uses_graphs=False)
        pipeline.networks.loaded[self.tuning.stage] = self.loaded
        height, width = self.samples[0].size
        factor = self.models.require("movq")[1].config.factor
        settings = pipeline.resolve(
            Settings(fps="low", width=width * factor, height=height * factor, steps=self.tuning.sample_steps)
        )
        draw = self._gaps if self.tuning.stage == "interpolation" else self._clips
        rows = draw(pipeline, settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{step:06}.png"
        write_image(captioned_sheet(rows), path)
        return path

    def _text(self, pipeline: Pipeline, caption: str) -> Text:
        context, mask, lengths = (part.to(pipeline.device) for part in pad_contexts([self.contexts[caption]]))
        return Text(context.to(pipeline.dtype), mask, lengths)

    def _clips(self, pipeline: Pipeline, settings: Settings) -> list[tuple[Tensor, str]]:
        rows, first = [], None
        if pipeline.family == "1.1":
            first = self.samples[0].read("keyframes", 0)[:1].to(pipeline.device)
        for prompt in self.tuning.prompts:
            latents = pipeline.sample_keyframes(self._text(pipeline, prompt), settings, first_frame=first)
            rows.append((pipeline.decode(latents[0], settings), prompt))
        return rows

    def _gaps(self, pipeline: Pipeline, settings: Settings) -> list[tuple[Tensor, str]]:
        captions = {id(context): caption for caption, context in self.contexts.items()}
        rows = []
        for sample in self.samples[: max(1, len(self.tuning.prompts))]:
            window = sample.read("skip_3", 0)[None, ::4]
            caption = captions[id(sample.context)]
            latents = pipeline.interpolate(window, settings, text=self._text(pipeline, caption))
            rows.append((pipeline.decode(latents[0], settings), caption))
        return rows
