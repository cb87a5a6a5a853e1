"""Prompt to frames: the stages joined, with files, sizes in pixels, seeds and progress."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.folder import ModelFiles, find_models
from ..checkpoints.folding import Parity
from ..checkpoints.loading import Loaded
from ..checkpoints.lora import with_loras
from ..errors import InputError
from ..media.pictures import fit_as_released, fit_covering
from ..models.masked_unet import GROUP_FRAMES
from ..runtime.budget import fits, step_bytes
from ..runtime.clock import Clock, Progress
from ..runtime.devices import free_bytes
from ..runtime.graph import CudaCapture, Graphs
from ..sampling.noise import KEYFRAMES, PICTURE, SeededNoise, pass_stream, stage_seeds
from ..sampling.samplers import Callback
from ..stages.decoding import blend_overlap, decode_chunks
from ..stages.interpolation import GAP_STAGES, SKIP_FRAMES
from ..stages.keyframes import sample_keyframes_v10, sample_keyframes_v11, sample_picture_v11
from ..stages.run import Run, Text
from .clip import Clip, LatentClip
from .networks import Networks
from .prompts import Prompts
from .settings import DEFAULT_STEPS, LEVELS, Settings, resolve_settings


class Pipeline:
    """Text-to-video of release 1.0 and 1.1 and image-to-video of 1.1, from a folder of weights.

    A stage's network is loaded when the stage first runs. Every stage can be called alone with the tensors that
    the one before returned.

    Args:
        models: the opened files, see ``find_models``.
        device: where networks run.
        dtype: dtype of the U-Nets; the text encoder takes bfloat16 (float32 on a device without) where this is float16,
            which overflows at the size of Flan-UL2, and MoVQ stays in float32 as release 1.1 has it.
        keeps_networks: keep a stage's network after the stage; False frees it, for a small card.
        parity: "strict" keeps the networks as released, "fast" folds linear layer after linear layer, the same
            function up to rounding (``folding.fold``).
        uses_graphs: on a CUDA device, record a sampling step once and replay it (``runtime.graph``).
        defaults: settings to start from where the caller's are None.
        loras: files with their strengths, merged into the U-Nets that they were made for.
    """

    def __init__(
        self, models: ModelFiles, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
        keeps_networks: bool = True, parity: Parity = "fast", uses_graphs: bool = True,
        defaults: Settings | None = None, loras: Sequence[tuple[str | Path, float]] = (),
    ) -> None:  # fmt: skip
        self.models, self.family = with_loras(models, loras), models.family
        self.device, self.dtype = torch.device(device), dtype
        self.uses_graphs = uses_graphs and self.device.type == "cuda"
        self.defaults = defaults or Settings(fps="low", width=512, height=512)
        self.networks = Networks(self.models, self.device, dtype, parity, keeps_all=keeps_networks)
        self.prompts = Prompts(self.networks)

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> "Pipeline":
        """Open a folder of released or converted weights; options as in the constructor."""
        return cls(find_models(folder), **options)

    def network(self, stage: str) -> Loaded:
        """Return the loaded file of a stage (``Kind.stage``), loading it the first time."""
        return self.networks.get(stage)

    @property
    def decoder_stage(self) -> str:
        """The MoVQ that decodes clips: the image decoder in release 1.0, the video decoder in 1.1."""
        return "movq" if self.family == "1.0" else "video_movq"

    @property
    def gap_stage(self) -> str:
        """What fills gaps: the interpolation U-Net, or the masked-frame one in a folder that has no other."""
        has = self.models.files.keys()
        return "masked" if "masked" in has and "interpolation" not in has else "interpolation"

    @property
    def multiple(self) -> int:
        """Width and height must be multiples of this many pixels: 64 for the releases."""
        files, movq = self.models.files, self.models.require(self.decoder_stage)[1].config
        unets = [files[stage][1].config for stage in ("keyframe", self.gap_stage) if stage in files]
        return math.lcm(*(unet.side_multiple for unet in unets)) * movq.factor

    def resolve(self, settings: Settings) -> Settings:
        """Fill in the model's defaults and check every value; see ``resolve_settings``."""
        trained = self.models.require("keyframe")[1].config.num_frames
        return resolve_settings(settings, self.defaults, self.multiple, trained)

    def _latent_size(self, settings: Settings) -> tuple[int, int]:
        factor = self.models.require(self.decoder_stage)[1].config.factor
        return settings.height // factor, settings.width // factor

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Encode one prompt per clip; an empty one is an ``InputError``."""
        return self.prompts.encode(prompts)

    def encode_negative(self, negatives: Sequence[str], prompts: Sequence[str]) -> Text:
        """Encode negative prompts as release 1.0 does: cut to each prompt's length, under the prompt's mask."""
        return self.prompts.encode_negative(negatives, prompts)

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
        return Run(noise, is_stacked, callback, self.networks.conditioner(stage), graphs)

    @torch.inference_mode()
    def sample_keyframes(
        self, text: Text, settings: Settings, *, negative: Text | None = None, first_frame: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:  # fmt: skip
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
        null = negative or text.unconditional(self.networks.null_embedding("keyframe"))
        shared = {
            "num_frames": settings.num_frames, "guidance_scale": settings.guidance_scale,
            "steps": settings.steps or DEFAULT_STEPS,
        }  # fmt: skip
        if self.family == "1.0":
            return sample_keyframes_v10(loaded.network, text, null, run, size=self._latent_size(settings), **shared)
        return sample_keyframes_v11(
            loaded.network, text, null, first_frame, run, image_guidance=settings.image_guidance,
            motion_score=settings.motion_score, noise_level=settings.noise_level,
            uniform_noise=not settings.is_mended, **shared,
        )  # fmt: skip

    @torch.inference_mode()
    def sample_picture(self, text: Text, settings: Settings, callback: Callback | None = None) -> Tensor:
        """Return a first frame ``[2H, 2W, 3]`` in 0..1 drawn from text, release 1.1."""
        loaded = self.network("keyframe")
        # Release 1.1: the first frame is drawn at twice the size asked for (latent side height // 4).
        size = tuple(2 * side for side in self._latent_size(settings))
        run = self._run("keyframe", settings, PICTURE, callback, clips=1, samples=2, size=size)
        latents = sample_picture_v11(
            loaded.network, text, text.unconditional(self.networks.null_embedding("keyframe")), run, size=size,
            guidance_scale=settings.guidance_scale, steps=settings.steps or DEFAULT_STEPS,
        )  # fmt: skip
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
        self, keyframes: Tensor, settings: Settings, *, passes: int = 1, first: int = 0, text: Text | None = None,
        callback: Callback | None = None,
    ) -> Tensor:  # fmt: skip
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
        loaded, null, keyframes = self.network(stage), self.networks.null_embedding(stage), keyframes.to(self.device)
        for i in range(first, first + passes):
            clips, frames, _, *sides = keyframes.shape
            samples = 2 * (frames - 1) * (GROUP_FRAMES if stage == "masked" else 1)
            run = self._run(stage, settings, pass_stream(i), callback, clips=clips, samples=samples, size=tuple(sides))
            skip = SKIP_FRAMES[min(i, len(SKIP_FRAMES) - 1)]
            keyframes = GAP_STAGES[stage](
                loaded.network, keyframes, text, null, run, steps=settings.steps if self.family == "1.0" else None,
                skip_frames=skip, guidance_scale=settings.interpolation_guidance,
            )  # fmt: skip
        return keyframes

    def decode(self, latents: Tensor, settings: Settings, **options: Any) -> Tensor:
        """Return frames ``[F, H, W, 3]`` in 0..1 of one clip's latents ``[F, 4, h, w]``, on the CPU.

        Arguments and options as in ``decode_chunks``.
        """
        config = self.network(options.get("decoder") or self.decoder_stage).network.config
        height, width = (side * config.factor for side in latents.shape[-2:])
        frames, done = torch.empty(len(latents), height, width, config.out_ch), 0
        for chunk in self.decode_chunks(latents, settings, **options):
            frames[done : done + len(chunk)] = chunk
            done += len(chunk)
        return frames

    @torch.inference_mode()
    def decode_chunks(
        self, latents: Tensor, settings: Settings, *, decoder: str | None = None,
        should_stop: Callable[[int, int], bool | None] | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield frames ``[k, H, W, 3]`` in 0..1, on the CPU, as they are decoded.

        Args:
            latents: ``[F, 4, h, w]`` of one clip.
            settings: resolved settings.
            decoder: "movq" or "video_movq"; default ``decoder_stage``.
            should_stop: see ``decoding.decode``.
        """
        network = self.network(decoder or self.decoder_stage).network
        blends = settings.is_mended and network.config.is_video
        chunks = decode_chunks(
            network, latents.to(self.device).float(), shared_map=self.family == "1.1" and not settings.is_mended,
            overlap=blend_overlap(len(latents)) if blends else 0, should_stop=should_stop,
        )  # fmt: skip
        for frames in chunks:
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
        self, prompt: str, settings: Settings | None = None, *, negative: str | None = None,
        picture: Tensor | None = None, decoder: str | None = None, progress: Progress | None = None,
    ) -> LatentClip:  # fmt: skip
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
                "expected no start picture for release 1.0, which reads text only, got one: take release 1.1"
            )
        if self.family == "1.1" and negative:
            raise InputError(
                "expected no negative prompt for release 1.1, which never learnt to read one, got one: take release 1.0"
            )
        needed = ["text_encoder", "keyframe", decoder or self.decoder_stage] + ([self.gap_stage] if passes else [])
        needed += ["movq"] if self.family == "1.1" and picture is None else []
        for stage in needed:
            self.models.require(stage)
