"""Pictures for the person who trains: what the network sees of the clips, and what it draws on the way."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..checkpoints.folder import ModelFiles
from ..checkpoints.loading import load_contents
from ..media.pictures import write_image
from ..media.sheet import contact_sheet
from ..sampling.noise import KEYFRAMES, SeededNoise, stage_seeds
from ..stages.decoding import decode
from ..stages.interpolation import interpolate
from ..stages.keyframes import FirstFrame, sample_keyframes
from ..stages.run import Run, Text
from .batches import Sample, pad_contexts
from .objectives import GapTuning, KeyframeTuning
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
        self, models: ModelFiles, objective: KeyframeTuning | GapTuning, contexts: Mapping[str, Tensor],
        samples: Sequence[Sample], tuning: Tuning, folder: Path,
    ) -> None:  # fmt: skip
        self.models, self.objective, self.contexts, self.samples = models, objective, contexts, samples
        self.tuning, self.folder = tuning, folder

    @torch.no_grad()
    def draw(self, step: int) -> Path:
        """Write a sheet of what the network draws now and return its path; no random number of the training is used."""
        clips = self._gaps() if self.tuning.stage == "interpolation" else self._keyframes()
        weight = self.objective.unet.in_layer.weight
        movq = load_contents(*self.models.require("movq"), device=weight.device, dtype=torch.float32).network
        rows = [(decode(movq, latents).permute(0, 2, 3, 1).cpu(), caption) for latents, caption in clips]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{step:06}.png"
        write_image(captioned_sheet(rows), path)
        return path

    def _run(self) -> Run:
        return Run(SeededNoise(stage_seeds(self.tuning.seed, 1, KEYFRAMES)), preparing=self.objective.conditioner())

    def _text(self, context: Tensor) -> tuple[Text, Tensor]:
        weight = self.objective.unet.in_layer.weight
        context, mask, lengths = (part.to(weight.device) for part in pad_contexts([context]))
        return Text(context.to(weight.dtype), mask, lengths), self.objective.null_embedding.to(weight)

    def _keyframes(self) -> list[tuple[Tensor, str]]:
        unet, rows, first = self.objective.unet, [], None
        if unet.config.family == "1.1":
            first = FirstFrame(self.samples[0].read("keyframes", 0)[:1].to(unet.in_layer.weight.device))
        for prompt in self.tuning.prompts:
            text, null = self._text(self.contexts[prompt])
            latents = sample_keyframes(
                unet, text, text.unconditional(null), self._run(), keyframes=unet.config.num_frames,
                size=self.samples[0].size, first_frame=first, guidance_scale=self.tuning.sample_guidance,
                steps=self.tuning.sample_steps,
            )  # fmt: skip
            rows.append((latents[0], prompt))
        return rows

    def _gaps(self) -> list[tuple[Tensor, str]]:
        captions = {id(context): caption for caption, context in self.contexts.items()}
        unet, rows = self.objective.unet, []
        for sample in self.samples[: max(1, len(self.tuning.prompts))]:
            window = sample.read("skip_3", 0)[None, ::4].to(unet.in_layer.weight.device)
            text, null = self._text(sample.context)
            latents = interpolate(unet, window, text, null, self._run(), skip_frames=3, steps=self.tuning.sample_steps)
            rows.append((latents[0], captions[id(sample.context)]))
        return rows
