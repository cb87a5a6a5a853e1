"""Prompt to frames: the stages joined, with files, sizes in pixels, seeds and progress."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.folder import ModelFiles, find_models
from ..checkpoints.folding import Parity, require_parity
from ..checkpoints.loading import Loaded, load_contents
from ..checkpoints.lora import with_loras
from ..errors import CheckpointError, InputError
from ..media.pictures import fit_as_released, fit_covering
from ..models.masked_unet import GROUP_FRAMES
from ..models.text_encoder import project_context
from ..models.unet import UNet
from ..runtime.budget import fits, free_bytes, step_bytes
from ..runtime.clock import Clock, Progress
from ..runtime.graph import CudaCapture, Graphs
from ..runtime.parking import park
from ..sampling.noise import KEYFRAMES, PICTURE, SeededNoise, pass_stream, stage_seeds
from ..sampling.samplers import Callback
from ..stages.decoding import blend_overlap, decode_chunks
from ..stages.interpolation import GAP_STAGES, SKIP_FRAMES
from ..stages.keyframes import sample_keyframes_v10, sample_keyframes_v11, sample_picture_v11
from ..stages.run import Run, Text
from ..stages.tokenizer import MAX_TOKENS, Tokenizer
from .clip import Clip, LatentClip
from .settings import DEFAULT_STEPS, LEVELS, Settings, resolve_settings


class Pipeline:
    """Text-to-video of release 1.0 and 1.1 and image-to-video of 1.1, from a folder of weights.

    A stage's network is loaded when the stage first runs. Every stage can be called alone with the tensors that
    the one before returned.

    Args:
        models: the opened files, see ``find_models``.
        device: where networks run.
        dtype: dtype of the U-Nets; the text encoder takes bfloat16 where this is float16, which overflows at the
            size of Flan-UL2, and MoVQ stays in float32 as release 1.1 has it.
        keeps_networks: keep a stage's network after the stage; False frees it, for a small card.
        parity: "strict" keeps the networks as released, "fast" folds linear layer after linear layer, the same
            function up to rounding (``folding.fold``).
        uses_graphs: on a CUDA device, record a sampling step once and replay it (``runtime.graph``).
        defaults: settings to start from where the caller's are None.
        loras: files with their strengths, merged into the U-Nets that they were made for.
    """

    def __init__(
        self,
        models: ModelFiles,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        keeps_networks: bool = True,
        parity: Parity = "fast",
        uses_graphs: bool = True,
        defaults: Settings | None = None,
        loras: Sequence[tuple[str | Path, float]] = (),
    ) -> None:
        self.models, self.device, self.dtype = with_loras(models, loras), torch.device(device), dtype
        self.family = models.family
        require_parity(parity)
        self.keeps_networks, self.parity = keeps_networks, parity
        self.uses_graphs = uses_graphs and self.device.type == "cuda"
        self.defaults = defaults or Settings(fps="low", width=512, height=512)
        self._networks: dict[str, Loaded] = {}
        self._conditioners: dict[str, AbstractContextManager] = {}
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> "Pipeline":
        """Open a folder of released or converted weights; options as in the constructor."""
        return cls(find_models(folder), **options)

    def network(self, stage: str) -> Loaded:
        """Return the loaded file of a stage (``Kind.stage``), loading it the first time."""
        if stage not in self._networks:
            if not self.keeps_networks:
                self._networks.clear()
                self._conditioners.clear()
            loaded = load_contents(
                *self.models.require(stage), stage=stage, device=self.device, dtype=self._dtype_of(stage),
                parity=self.parity,
            )  # fmt: skip
            if isinstance(loaded.network, UNet) and self.device.type != "cpu":
                # A third of a U-Net's weights is read once per run; on the device they would only take room.
                self._conditioners[stage] = park(loaded.network.conditioner_modules(), self.device)
            self._networks[stage] = loaded
        return self._networks[stage]

    def _dtype_of(self, stage: str) -> torch.dtype:
        if "movq" in stage:
            return torch.float32
        if stage in ("text_encoder", "projection") and self.dtype == torch.float16:
            return torch.bfloat16
        return self.dtype

    @property
    def decoder_stage(self) -> str:
        """The MoVQ that decodes clips: the image decoder in release 1.0, the video decoder in 1.1."""
        return "movq" if self.family == "1.0" else "video_movq"

    @property
    def gap_stage(self) -> str:
        """What fills gaps: the interpolation U-Net, or the masked-frame one in a folder that has no other."""
        return (
            "masked" if "masked" in self.models.files and "interpolation" not in self.models.files else "interpolation"
        )

    @property
    def multiple(self) -> int:
        """Width and height must be multiples of this many pixels: 64 for the releases."""
        movq = self.models.require(self.decoder_stage)[1].config
        unets = [
            self.models.files[stage][1].config for stage in ("keyframe", self.gap_stage) if stage in self.models.files
        ]
        return math.lcm(*(unet.side_multiple for unet in unets)) * movq.factor

    def resolve(self, settings: Settings) -> Settings:
        """Fill in the model's defaults and check every value; see ``resolve_settings``."""
        trained = self.models.require("keyframe")[1].config.num_frames
        return resolve_settings(settings, self.defaults, self.multiple, trained)

    def _latent_size(self, settings: Settings) -> tuple[int, int]:
        factor = self.models.require(self.decoder_stage)[1].config.factor
        return settings.height // factor, settings.width // factor

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Encode one prompt per clip.

        Raises:
            InputError: if a prompt is empty.
        """
        for prompt in prompts:
            if not prompt.strip():
                raise InputError("expected a prompt, got an empty text: describe what the video shows")
        rows = [self._tokens(prompt) for prompt in prompts]
        return self._encode(rows, [row.shape[1] for row in rows])

    @torch.inference_mode()
    def encode_negative(self, negatives: Sequence[str], prompts: Sequence[str]) -> Text:
        """Encode negative prompts as release 1.0 does: cut to each prompt's length, under the prompt's mask."""
        lengths = [self._tokens(prompt).shape[1] for prompt in prompts]
        rows = [self._tokenizer.encode_negative(text, n) for text, n in zip(negatives, lengths, strict=True)]
        return self._encode(rows, lengths)

    def _tokens(self, prompt: str) -> Tensor:
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self.models.tokenizer)
        return self._tokenizer.encode(prompt).ids

    def _encode(self, rows: list[Tensor], lengths: list[int]) -> Text:
        size = min(max(lengths) + 1, MAX_TOKENS)
        ids, mask = (torch.zeros(len(rows), size, dtype=torch.long) for _ in range(2))
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[i, : row.shape[1]] = row
            mask[i, :length] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        hidden = self.network("text_encoder").network(ids, mask)
        is_bad = ~hidden.isfinite().all(dim=2).all(dim=1)
        if is_bad.any():
            # Release 1.0: a prompt whose encoding overflows becomes an empty context; we say so.
            warnings.warn("the text encoder overflowed, the prompt is ignored: use bfloat16 or float32", stacklevel=3)
            hidden, mask = torch.where(is_bad[:, None, None], 0, hidden), torch.where(is_bad[:, None], 0, mask)
        context, mask = project_context(hidden, mask, self._projection())
        counted = (mask.sum(dim=1) + 1).clamp(max=MAX_TOKENS)
        return Text(context.to(self.dtype), mask, counted)

    def _projection(self) -> torch.nn.Module:
        stage = "projection" if "projection" in self.models.files else "keyframe"
        projection = self.network(stage).projection
        if projection is None:
            self.models.require("projection")
        return projection.to(self._dtype_of("text_encoder"))

    def _run(
        self, stage: str, settings: Settings, stream: int, callback: Callback | None, *, clips: int, samples: int,
        size: tuple[int, int],
    ) -> Run:  # fmt: skip
        """Return how a stage runs: ``samples`` of ``size`` latents per clip with all guidance branches stacked."""
        is_stacked, unet = settings.is_stacked, self.network(stage).network
        if is_stacked is None:
            needed = step_bytes(clips * samples, size, unet.config.model_channels, self.dtype.itemsize)
            is_stacked = fits(needed, free_bytes(self.device))
        noise = SeededNoise(stage_seeds(settings.seed, clips, stream))
        graphs = Graphs(CudaCapture(self.device)) if self.uses_graphs else None
        return Run(noise, is_stacked, callback, self._conditioners.get(stage, nullcontext()), graphs)

    def _null_embedding(self, stage: str) -> Tensor:
        null_embedding = self.network(stage).null_embedding
        if null_embedding is None:
            raise CheckpointError(
                f"expected a null embedding in the {stage} file of '{self.models.folder}', found none: convert the "
                "authors' file, which holds one"
            )
        return null_embedding.to(self.dtype)

    @torch.inference_mode()
    def sample_keyframes(
        self,
        text: Text,
        settings: Settings,
        *,
        negative: Text | None = None,
        first_frame: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Return keyframe latents ``[B, T, 4, h, w]``; clip i of a batch is the clip of ``seed + i`` alone.

        Args:
            text: B prompts.
            settings: resolved settings.
            negative: release 1.0: encoded negative prompts.
            first_frame: release 1.1: ``[B, 4, h, w]`` latents.
            callback: see ``sample_ddpm``.
        """
        loaded = self.network("keyframe")
        branches = 2 if self.family == "1.0" else 3
        run = self._run(
            "keyframe", settings, KEYFRAMES, callback, clips=text.context.shape[0],
            samples=branches * settings.num_frames, size=self._latent_size(settings),
        )  # fmt: skip
        null = negative or text.unconditional(self._null_embedding("keyframe"))
        if self.family == "1.0":
            return sample_keyframes_v10(
                loaded.network,
                text,
                null,
                run,
                size=self._latent_size(settings),
                num_frames=settings.num_frames,
                guidance_scale=settings.guidance_scale,
                steps=settings.steps or DEFAULT_STEPS,
            )
        return sample_keyframes_v11(
            loaded.network,
            text,
            null,
            first_frame,
            run,
            num_frames=settings.num_frames,
            guidance_scale=settings.guidance_scale,
            image_guidance=settings.image_guidance,
            motion_score=settings.motion_score,
            noise_level=settings.noise_level,
            uniform_noise=not settings.is_mended,
            steps=settings.steps or DEFAULT_STEPS,
        )

    @torch.inference_mode()
    def sample_picture(self, text: Text, settings: Settings, callback: Callback | None = None) -> Tensor:
        """Return a first frame ``[2H, 2W, 3]`` in 0..1 drawn from text, release 1.1."""
        loaded = self.network("keyframe")
        # Release 1.1: the first frame is drawn at twice the size asked for (latent side height // 4).
        size = tuple(2 * side for side in self._latent_size(settings))
        run = self._run("keyframe", settings, PICTURE, callback, clips=1, samples=2, size=size)
        latents = sample_picture_v11(
            loaded.network,
            text,
            text.unconditional(self._null_embedding("keyframe")),
            run,
            size=size,
            guidance_scale=settings.guidance_scale,
            steps=settings.steps or DEFAULT_STEPS,
        )
        # The last names of a network that low memory wants freed before the next one is loaded.
        del loaded, run
        return next(decode_chunks(self.network("movq").network, latents.float()))[0].permute(1, 2, 0).cpu()

    @torch.inference_mode()
    def encode_picture(self, picture: Tensor, settings: Settings) -> Tensor:
        """Return latents ``[1, 4, h, w]`` of a picture ``[H, W, 3]`` in 0..1 of any size."""
        fit = fit_covering if settings.is_mended else fit_as_released
        pixels = fit(picture, settings.width, settings.height).permute(2, 0, 1)[None] * 2 - 1
        stage = "movq" if "movq" in self.models.files else "video_movq"
        return self.network(stage).network.encode(pixels.to(self.device))

    @torch.inference_mode()
    def interpolate(
        self,
        keyframes: Tensor,
        settings: Settings,
        *,
        passes: int = 1,
        first: int = 0,
        text: Text | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Return ``[B, T', 4, h, w]`` latents, T to 4T - 3 per pass; the frames given stay as they are.

        Args:
            keyframes: ``[B, T, 4, h, w]`` latents.
            settings: resolved settings.
            passes: how often to interpolate.
            first: number of the first pass, from 0: later passes see frames that are closer in time.
            text: the prompts, release 1.1.
            callback: see ``sample_ddpm``.
        """
        stage = self.gap_stage
        loaded, null, keyframes = self.network(stage), self._null_embedding(stage), keyframes.to(self.device)
        for i in range(first, first + passes):
            clips, frames, _, *sides = keyframes.shape
            samples = 2 * (frames - 1) * (GROUP_FRAMES if stage == "masked" else 1)
            run = self._run(stage, settings, pass_stream(i), callback, clips=clips, samples=samples, size=tuple(sides))
            steps = settings.steps if self.family == "1.0" else None
            keyframes = GAP_STAGES[stage](
                loaded.network,
                keyframes,
                text,
                null,
                run,
                steps=steps,
                skip_frames=SKIP_FRAMES[min(i, len(SKIP_FRAMES) - 1)],
                guidance_scale=settings.interpolation_guidance,
            )
        return keyframes

    def decode(
        self,
        latents: Tensor,
        settings: Settings,
        *,
        decoder: str | None = None,
        should_stop: Callable[[int, int], bool | None] | None = None,
    ) -> Tensor:
        """Return frames ``[F, H, W, 3]`` in 0..1 of one clip's latents ``[F, 4, h, w]``, on the CPU.

        Arguments as in ``decode_chunks``.
        """
        config = self.network(decoder or self.decoder_stage).network.config
        height, width = (side * config.factor for side in latents.shape[-2:])
        frames, done = torch.empty(len(latents), height, width, config.out_ch), 0
        for chunk in self.decode_chunks(latents, settings, decoder=decoder, should_stop=should_stop):
            frames[done : done + len(chunk)] = chunk
            done += len(chunk)
        return frames

    @torch.inference_mode()
    def decode_chunks(
        self,
        latents: Tensor,
        settings: Settings,
        *,
        decoder: str | None = None,
        should_stop: Callable[[int, int], bool | None] | None = None,
    ) -> Iterator[Tensor]:
        """Yield frames ``[k, H, W, 3]`` in 0..1, on the CPU, as they are decoded.

        Args:
            latents: ``[F, 4, h, w]`` of one clip.
            settings: resolved settings.
            decoder: "movq" or "video_movq"; default ``decoder_stage``.
            should_stop: see ``decoding.decode``.
        """
        network = self.network(decoder or self.decoder_stage).network
        blends = settings.is_mended and network.config.is_video
        for frames in decode_chunks(
            network,
            latents.to(self.device).float(),
            shared_map=self.family == "1.1" and not settings.is_mended,
            overlap=blend_overlap(len(latents)) if blends else 0,
            should_stop=should_stop,
        ):
            yield frames.permute(0, 2, 3, 1).cpu()

    def generate(self, prompt: str, settings: Settings | None = None, **options: Any) -> Clip:
        """Make one clip; arguments and errors as in ``sample``."""
        settings = self.resolve(settings or Settings())
        clip = self.sample(prompt, settings, **options)
        clock = Clock(options.get("progress"), clip.seconds)
        with clock("decoding"):
            frames = self.decode(clip.latents, settings, decoder=options.get("decoder"), should_stop=clock.count)
        return Clip(frames=frames, **vars(clip))

    def sample(
        self,
        prompt: str,
        settings: Settings | None = None,
        *,
        negative: str | None = None,
        picture: Tensor | None = None,
        decoder: str | None = None,
        progress: Progress | None = None,
    ) -> LatentClip:
        """Make the latents of one clip from a prompt and, release 1.1, a picture to start from.

        Args:
            prompt: what the video shows, in English.
            settings: see ``Settings``.
            negative: what it should not show; release 1.0 only.
            picture: ``[H, W, 3]`` in 0..1, release 1.1 only; without one, 1.1 draws its own first frame.
            decoder: "movq" or "video_movq"; default the release's. Only looked for here, before any work.
            progress: called after every step of every stage; True stops the run with ``Stopped``.

        Raises:
            InputError: for settings or inputs that the model does not take.
            CheckpointError: if the folder lacks a file that is needed.
            Stopped: if ``progress`` asked for it.
        """
        settings = self.resolve(settings or Settings())
        passes, fps = LEVELS[settings.fps]
        self._check_inputs(negative, picture, passes, decoder)
        clock = Clock(progress, {})
        with clock("text"):
            text = self.encode_text([prompt])
            negatives = self.encode_negative([negative], [prompt]) if negative else None
        first_frame = None
        if self.family == "1.1":
            with clock("first frame"):
                if picture is None:
                    picture = self.sample_picture(text, settings, clock.step)
                first_frame = self.encode_picture(picture, settings)
        with clock("keyframes"):
            keyframes = self.sample_keyframes(
                text, settings, negative=negatives, first_frame=first_frame, callback=clock.step
            )
        latents = keyframes
        for i in range(passes):
            with clock(f"interpolation {i + 1}"):
                latents = self.interpolate(latents, settings, first=i, text=text, callback=clock.step)
        return LatentClip(fps=fps, keyframes=keyframes[0].cpu(), latents=latents[0].cpu(), seconds=clock.seconds)

    def _check_inputs(self, negative: str | None, picture: Tensor | None, passes: int, decoder: str | None) -> None:
        if self.family == "1.0" and picture is not None:
            raise InputError(
                "expected no start picture for release 1.0, which reads text only, got one: leave it out "
                "or use release 1.1"
            )
        if self.family == "1.1" and negative:
            raise InputError(
                "expected no negative prompt for release 1.1, which was not trained to read one, got one: "
                "leave it out or use release 1.0"
            )
        needed = ["text_encoder", "keyframe", decoder or self.decoder_stage] + ([self.gap_stage] if passes else [])
        needed += ["movq"] if self.family == "1.1" and picture is None else []
        for stage in needed:
            self.models.require(stage)
