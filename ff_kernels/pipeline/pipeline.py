"""Prompt to frames: the stages joined, with files, sizes in pixels, seeds and progress."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.folder import ModelFiles, find_models
from ..checkpoints.folding import Parity
from ..checkpoints.loading import Loaded
from ..checkpoints.lora import with_loras
from ..errors import InputError
from ..media.pictures import fit_as_released, fit_covering, to_rgb
from ..runtime.budget import ENCODE
from ..runtime.clock import Clock, Progress
from ..runtime.devices import wide_dtype
from ..runtime.graph import CudaCapture, Graphs
from ..runtime.plan import Budget
from ..sampling.noise import KEYFRAMES, PICTURE, Noise, SeededNoise, stage_seeds
from ..sampling.samplers import Callback
from ..stages.decoding import blend_overlap, decode_chunks, join_chunks
from ..stages.interpolation import GAP_STAGES, interpolate_passes
from ..stages.keyframes import FirstFrame, sample_keyframes, sample_picture
from ..stages.narrow import NarrowDecoder, choose_decoder
from ..stages.releases import RELEASES
from ..stages.run import Run, Text
from .clip import Clip, LatentClip
from .needs import Batch, MovqNeed, MovqPlan, decoding_need, interpolation_batch, keyframe_batch, unet_need
from .networks import Networks
from .prompts import Prompts
from .settings import LEVELS, Settings, resolve_settings


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
        budget: what the networks may use of the device and of main memory; default: what is free.
        rounds: keep weights of U-Nets in 8 bit, but where it shows (``ops.rounding``).
        prompt_cache: folder in which encoded prompts are kept and looked for; None keeps none.
    """

    def __init__(
        self, models: ModelFiles, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
        keeps_networks: bool = True, parity: Parity = "fast", uses_graphs: bool = True,
        defaults: Settings | None = None, budget: Budget | None = None,
        loras: Sequence[tuple[str | Path, float]] = (), rounds: bool = False,
        prompt_cache: Path | None = None,
    ) -> None:  # fmt: skip
        self.models, self.device, self.dtype = with_loras(models, loras), torch.device(device), dtype
        self.family, self.release = models.family, RELEASES[models.family]
        self.uses_graphs = uses_graphs and self.device.type == "cuda"
        self.defaults = defaults or Settings(fps="low", width=512, height=512)
        self.networks = Networks(
            self.models, self.device, dtype, parity, keeps_all=keeps_networks, budget=budget, rounds=rounds
        )
        self.prompts = Prompts(self.networks, prompt_cache)

    @classmethod
    def from_folder(cls, folder: str | Path, *, text_encoder: str | Path | None = None, **options: Any) -> "Pipeline":
        """Open a folder of released or converted weights; options as in the constructor.

        ``text_encoder`` is a file in place of one that the folder may hold.
        """
        return cls(find_models(folder, text_encoder=text_encoder), **options)

    def network(self, stage: str) -> Loaded:
        """Return the loaded file of a stage (``Kind.stage``), loading it the first time."""
        return self.networks.get(stage)

    @property
    def gap_stage(self) -> str:
        """What fills gaps: the interpolation U-Net, or the masked-frame one in a folder that has no other."""
        has = self.models.files.keys()
        return "masked" if "masked" in has and "interpolation" not in has else "interpolation"

    @property
    def picture_stage(self) -> str:
        """What reads pictures: the image MoVQ, or the video one in a folder that has no other."""
        return "movq" if "movq" in self.models.files else "video_movq"

    @property
    def multiple(self) -> int:
        """Width and height must be multiples of this many pixels: 64 for the releases."""
        files, movq = self.models.files, self.models.require(self.release.decoder)[1].config
        unets = [files[stage][1].config for stage in ("keyframe", self.gap_stage) if stage in files]
        return math.lcm(*(unet.side_multiple for unet in unets)) * movq.factor

    def resolve(self, settings: Settings) -> Settings:
        """Fill in the model's defaults and check every value; see ``resolve_settings``."""
        trained = self.models.require("keyframe")[1].config.num_frames
        return resolve_settings(settings, self.defaults, self.multiple, trained, self.release)

    def latent_size(self, settings: Settings) -> tuple[int, int]:
        """Return the height and width of a frame's latents."""
        factor = self.models.require(self.release.decoder)[1].config.factor
        return settings.height // factor, settings.width // factor

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Encode one prompt per clip; an empty one is an ``InputError``."""
        return self.prompts.encode(prompts)

    def encode_negative(self, negatives: Sequence[str], prompts: Sequence[str], *, is_mended: bool = False) -> Text:
        """Encode negative prompts: cut to each prompt's length as in release 1.0, or mended, whole."""
        return self.prompts.encode_negative(negatives, prompts, is_mended=is_mended)

    @contextmanager
    def _running(
        self, stage: str, settings: Settings, batch: Batch
    ) -> Iterator[tuple[nn.Module, Callable[[Noise, Callback | None], Run]]]:
        """Yield the network of a stage, ready to run, and what makes a ``Run`` of a noise source and a callback."""
        plan = settings.plan if stage == "keyframe" else settings.interpolation_plan
        target = self.networks.target(stage)
        held = self.networks.placed(stage, lambda unet: unet_need(unet, batch, target, settings.is_stacked))

        def make_run(noise: Noise, callback: Callback | None) -> Run:
            # A graph replays no hooks, so that blocks which pass through would keep the weights of its recording.
            records = self.uses_graphs and not held.plan.streamed
            graphs = Graphs(CudaCapture(self.device)) if records else None
            return Run(noise, held.plan.is_stacked, callback, graphs=graphs, plan=plan)

        with held.running:
            yield held.network, make_run

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
            callback: see ``sample_latents``.
        """
        clips, size = text.context.shape[0], self.latent_size(settings)
        noise = SeededNoise(stage_seeds(settings.seed, clips, KEYFRAMES))
        start = None if first_frame is None else FirstFrame(
            first_frame, settings.image_guidance, settings.motion_score, settings.noise_level, not settings.is_mended
        )  # fmt: skip
        null = negative or text.unconditional(self.networks.null_embedding("keyframe"))
        with self._running("keyframe", settings, keyframe_batch(settings, self.release, clips, size)) as (
            unet,
            make_run,
        ):
            return sample_keyframes(
                unet, text, null, make_run(noise, callback), keyframes=settings.keyframes, size=size,
                first_frame=start, guidance_scale=settings.guidance_scale, steps=settings.steps,
            )  # fmt: skip

    @torch.inference_mode()
    def sample_picture(self, text: Text, settings: Settings, callback: Callback | None = None) -> Tensor:
        """Return a first frame ``[2H, 2W, 3]`` in 0..1 drawn from text, release 1.1."""
        # Release 1.1: the first frame is drawn at twice the size asked for (latent side height // 4).
        size = tuple(2 * side for side in self.latent_size(settings))
        noise = SeededNoise(stage_seeds(settings.seed, 1, PICTURE))
        batch = Batch(1, 2, 2, size, settings.steps or self.release.keyframe.steps)
        null = text.unconditional(self.networks.null_embedding("keyframe"))
        with self._running("keyframe", settings, batch) as (unet, make_run):
            latents = sample_picture(
                unet, text, null, make_run(noise, callback), size=size, guidance_scale=settings.guidance_scale,
                steps=settings.steps,
            )  # fmt: skip
        # The last names of a network that low memory wants freed before the next one is loaded.
        del unet, make_run
        return next(self._decoded("movq", latents))[0].permute(1, 2, 0).cpu()

    @torch.inference_mode()
    def encode_picture(self, picture: Tensor, settings: Settings) -> Tensor:
        """Return latents ``[1, 4, h, w]`` of a picture ``[H, W, C]`` in 0..1 of any size, see ``to_rgb``."""
        fit = fit_covering if settings.is_mended else fit_as_released
        pixels = fit(to_rgb(picture), settings.width, settings.height).permute(2, 0, 1)[None] * 2 - 1
        network, plan = self.networks.movq(self.picture_stage, MovqNeed(ENCODE, 1, tuple(pixels.shape[-2:])))
        return network.encode(pixels.to(self.device, plan.dtype)).float()

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
            callback: see ``sample_latents``.
        """
        stage, clips, size = self.gap_stage, keyframes.shape[0], tuple(keyframes.shape[-2:])
        # The last pass is the largest.
        gaps = (keyframes.shape[1] - 1) * 4 ** (passes - 1)
        batch = interpolation_batch(settings, self.release, clips, gaps, GAP_STAGES[stage][1], size)
        with self._running(stage, settings, batch) as (unet, make_run):
            return interpolate_passes(
                unet, keyframes.to(self.device), text, self.networks.null_embedding(stage),
                lambda noise, samples: make_run(noise, callback), seed=settings.seed, passes=passes, first=first,
                guidance_scale=settings.interpolation_guidance,
                steps=settings.interpolation_steps,
            )  # fmt: skip

    def decode(self, latents: Tensor, settings: Settings, **options: Any) -> Tensor:
        """Return frames ``[F, H, W, 3]`` in 0..1 of one clip's latents ``[F, 4, h, w]``, on the CPU.

        Arguments and options as in ``decode_chunks``.
        """
        return join_chunks(self.decode_chunks(latents, settings, **options), len(latents))

    @torch.inference_mode()
    def decode_chunks(
        self, latents: Tensor, settings: Settings, *, decoder: str | None = None,
        should_stop: Callable[[int, int], bool | None] | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield frames ``[k, H, W, 3]`` in 0..1, on the CPU, as they are decoded.

        Args:
            latents: ``[F, 4, h, w]`` of one clip.
            settings: resolved settings.
            decoder: "movq" or "video_movq"; default the release's.
            should_stop: see ``decoding.decode``.
        """
        stage = decoder or self.release.decoder
        is_mended = settings.is_mended
        chunks = self._decoded(
            stage, latents, shared_map=self.release.shares_map and not is_mended, blends=is_mended,
            may_narrow=bool(settings.narrow_decoder), should_stop=should_stop,
        )  # fmt: skip
        for frames in chunks:
            yield frames.permute(0, 2, 3, 1).cpu()

    def decoder(self, frames: int, settings: Settings, decoder: str | None = None) -> MovqPlan:
        """Load what decodes clips of so many frames and return how it does; see ``decode_chunks``."""
        stage = decoder or self.release.decoder
        shares_map = self.release.shares_map and not settings.is_mended
        config = self.models.require(stage)[1].config
        return self.networks.movq(
            stage,
            decoding_need(config, frames, (settings.height, settings.width), shares_map, bool(settings.narrow_decoder)),
        )[1]

    def _decoded(
        self, stage: str, latents: Tensor, *, shared_map: bool = False, blends: bool = False, may_narrow: bool = False,
        should_stop: Callable[[int, int], bool | None] | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield frames ``[k, 3, H, W]`` in 0..1 of one clip's latents, on the device."""
        config = self.models.require(stage)[1].config
        size = tuple(side * config.factor for side in latents.shape[-2:])
        network, plan = self.networks.movq(stage, decoding_need(config, len(latents), size, shared_map, may_narrow))
        latents = latents.to(self.device).float()
        is_narrow, network_in = plan.dtype is not torch.float32, partial(self.networks.movq_in, stage)
        tries = (plan.dtype,) if is_narrow else plan.tries
        halves = (NarrowDecoder(network_in, half, wide_dtype(self.device, half)) for half in tries)
        if is_narrow:
            network = next(halves)
        elif tries:
            network, self.networks.reports[stage] = choose_decoder(
                network, halves, latents, chunk=plan.chunk, shared_map=shared_map
            )
        overlap = blend_overlap(len(latents), plan.chunk) if blends and config.is_video else 0
        yield from decode_chunks(
            network, latents, chunk=plan.chunk, shared_map=shared_map, overlap=overlap, should_stop=should_stop
        )

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
        texts: tuple[Text, Text | None] | None = None,
    ) -> LatentClip:  # fmt: skip
        """Make the latents of one clip from a prompt and, release 1.1, a picture to start from.

        Args:
            prompt: what the video shows, in English.
            settings: see ``Settings``.
            negative: what it should not show; release 1.0 only.
            picture: ``[H, W, 3]`` in 0..1, release 1.1 only; without one, 1.1 draws its own first frame.
            decoder: "movq" or "video_movq"; default the release's. Only looked for here, before any work.
            progress: called after every step of every stage; True stops the run with ``Stopped``.
            texts: what ``encode_text`` and, with a negative prompt, ``encode_negative`` gave for these prompts before;
                None encodes them now.

        Raises:
            InputError: for settings or inputs that the model does not take.
            CheckpointError: if the folder lacks a file that is needed.
            Stopped: if ``progress`` asked for it.
        """
        settings = self.resolve(settings or Settings())
        passes, fps = LEVELS[settings.fps]
        self.check_inputs(negative, has_picture=picture is not None, passes=passes, decoder=decoder)
        clock = Clock(progress, {})
        with clock("text"):
            if texts is None:
                texts = self.encode_text([prompt]), None
                if negative:
                    mended = settings.is_mended
                    texts = texts[0], self.encode_negative([negative], [prompt], is_mended=mended)
        text, negatives = texts
        first_frame = None
        if self.release.reads_image:
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

    def check_inputs(self, negative: str | None, *, has_picture: bool, passes: int, decoder: str | None) -> None:
        """Refuse what this release does not take, and look for the files that a clip needs; nothing is loaded.

        Arguments and errors are those of ``sample``; ``passes`` is the number of interpolation passes.
        """
        if has_picture and not self.release.reads_image:
            raise InputError(
                "expected no start picture for release 1.0, which reads text only, got one: take release 1.1"
            )
        if negative and self.release.reads_image:
            raise InputError(
                "expected no negative prompt for release 1.1, which never learnt to read one, got one: take release 1.0"
            )
        needed = ["text_encoder", "keyframe", decoder or self.release.decoder] + ([self.gap_stage] if passes else [])
        needed += ["movq"] if self.release.reads_image and not has_picture else []
        for stage in needed:
            self.models.require(stage)
