"""Fine-tuning of any weights on a folder of clips: a LoRA, or the parts over time as a whole checkpoint."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.conversion import write_checkpoint
from ..checkpoints.fingerprints import weights_fingerprint
from ..checkpoints.folder import ModelFiles
from ..checkpoints.loading import Loaded, check_contents, load_contents
from ..checkpoints.lora import write_lora
from ..checkpoints.reading import LATENTS_KEY, require_as_released
from ..errors import CheckpointError
from ..models.temporal_blocks import is_temporal
from ..pipeline.networks import Networks
from ..pipeline.prompts import Prompts
from ..stages.interpolation import SKIP_FRAMES
from .batches import GAP_WINDOW, Batches, Sample
from .clips import TrainingClip, Windows, cache_contexts, cache_latents, find_training_clips
from .freezing import freeze
from .interruption import SignalStop
from .loop import TrainConfig, Training, train
from .lora import attach_lora, detach_factors
from .objectives import GapTuning, KeyframeTuning, checkpoint_blocks
from .processes import Processes
from .report import Report
from .samples import SampleSheets
from .tuning import Tuning

DEFAULT_SCORE = 10
_STATE, _CACHE, _SHEETS = "state.pt", "cache", "sheets"
# Frames that MoVQ encodes at a time.
_FRAMES_AT_ONCE = 4


@dataclass(frozen=True)
class Job:
    """A fine-tuning: weights, clips, where to write.

    Attributes:
        models: folder of weights, see ``find_models``.
        clips: what to learn, see ``find_training_clips``.
        prior: clips that half of the rows of batches show instead.
        output: file to write, ending in ``.safetensors``.
        tuning: what to train.
        config: how long and how fast.
        device: where to train.
        dtype: of the frozen weights and of the computation.
    """

    models: ModelFiles
    clips: Sequence[TrainingClip]
    prior: Sequence[TrainingClip]
    output: Path
    tuning: Tuning
    config: TrainConfig
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def find(cls, models: ModelFiles, clips: Path, prior: Path | None, **rest: object) -> "Job":
        """Look up the clips of one or two folders; errors as of ``find_training_clips``."""
        kept = () if prior is None else find_training_clips(prior, DEFAULT_SCORE)
        return cls(models, find_training_clips(clips, DEFAULT_SCORE), kept, **rest)

    @property
    def folder(self) -> Path:
        """Where state, cache, log and sheets are: beside the output."""
        return self.output.with_suffix(".training")

    @property
    def windows(self) -> Windows:
        """How clips are cut for the network."""
        movq, unet = self.models.require("movq")[1].config, self.models.require(self.tuning.stage)[1].config
        rates, frames = {"keyframes": self.tuning.keyframe_fps}, unet.num_frames
        if self.tuning.stage == "interpolation":
            # A pass that leaves `skip` frames between two of its inputs sees every (skip + 1) / 4 of the full rate.
            rates = {f"skip_{skip}": self.tuning.keyframe_fps * 16 / (skip + 1) for skip in SKIP_FRAMES}
            frames = GAP_WINDOW
        area, multiple = self.tuning.size**2, unet.side_multiple * movq.factor
        return Windows(frames, rates, area, multiple, self.tuning.source_fps)

    @property
    def begun(self) -> str:
        """What the training starts from, in 16 hexadecimal digits: weights, clips, captions, what is trained."""
        tuning = self.tuning
        parts = [
            tuning.stage, tuning.what, tuning.layers, tuning.rank, tuning.size, tuning.keyframe_fps,
            tuning.noise_weight,
            tuning.seed, self.config.batch, self.config.accumulate, self._source(tuning.stage),
            *((clip.files.name, clip.caption, clip.motion_score) for clip in (*self.clips, *self.prior)),
        ]  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def _source(self, stage: str) -> str:
        return weights_fingerprint(self.models.require(stage)[0])

    @torch.inference_mode()
    def samples(self) -> tuple[list[Sample], list[Sample], dict[str, Tensor]]:
        """Encode what is not in the cache; return the clips, the prior and the contexts of clips and prompts."""
        cache, captions = self.folder / _CACHE, [clip.caption for clip in (*self.clips, *self.prior)]
        stages = ("text_encoder", "projection" if "projection" in self.models.files else "keyframe")
        source = " ".join((*map(self._source, stages), str(self.dtype)))
        networks = Networks(self.models, self.device, self.dtype, "strict", keeps_all=True)
        prompts = Prompts(networks)

        def encode_caption(caption: str) -> Tensor:
            text = prompts.encode([caption])
            return text.context[0][text.mask[0] > 0].float()

        contexts = cache_contexts([*captions, *self.tuning.prompts], cache, source, encode_caption)
        networks.free()
        movq = load_contents(*self.models.require("movq"), device=self.device, dtype=torch.float32).network

        def encode_frames(pixels: Tensor) -> Tensor:
            return torch.cat([movq.encode(part.to(self.device)).cpu() for part in pixels.split(_FRAMES_AT_ONCE)])

        windows, source, found = self.windows, self._source("movq"), []
        for clips in (self.clips, self.prior):
            paths = cache_latents(clips, windows, cache, source, encode_frames)
            found.append([Sample.of(p, contexts[c.caption], c.motion_score) for p, c in zip(paths, clips, strict=True)])
        return *found, contexts

    def objective(self) -> tuple[KeyframeTuning | GapTuning, Loaded]:
        """Return the network with what trains of it in float32, on the device, and its file."""
        contents, kind = self.models.require(self.tuning.stage)
        require_as_released(contents, "training")
        loaded = load_contents(contents, kind, dtype=self.dtype, parity="strict")
        make = KeyframeTuning if self.tuning.stage == "keyframe" else GapTuning
        weigh = (self.tuning.noise_weight,) if make is KeyframeTuning else ()
        if loaded.null_embedding is None:
            raise CheckpointError(
                f"expected a null embedding in '{contents.path}', found none: convert the authors' file"
            )
        objective = make(loaded.network, loaded.null_embedding, *weigh)
        torch.manual_seed(self.tuning.seed)
        if self.tuning.what == "lora":
            attach_lora(objective.unet, self.tuning.layers, self.tuning.rank)
        else:
            freeze(objective.requires_grad_(True), is_temporal)
            for parameter in objective.parameters():
                parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        if self.tuning.checkpoints:
            checkpoint_blocks(objective.unet)
        parks = self.device.type != "cpu" if self.tuning.parks is None else self.tuning.parks
        objective.place(self.device, parks=parks and self.tuning.what == "lora")
        return objective, loaded

    def write(self, trained: dict[str, Tensor], steps: int) -> None:
        """Write what was trained: a LoRA, or the base with its parts over time replaced."""
        contents, kind = self.models.require(self.tuning.stage)
        if self.tuning.what == "lora":
            notes = {
                "layers": self.tuning.layers, "rank": self.tuning.rank, "steps": steps,
                "base": self._source(self.tuning.stage), "base_name": contents.path.name,
            }  # fmt: skip
            write_lora(self.output, detach_factors(trained, "unet."), 1.0, kind, notes)
            return
        _, tensors, extras = check_contents(contents, kind)
        tuned = {key.removeprefix("unet."): value for key, value in trained.items()}
        merged = {key: tuned.get(key, value).to(value.dtype) for key, value in tensors.items()}
        write_checkpoint(self.output, kind, {**merged, **extras}, None, contents.metadata.get(LATENTS_KEY))


def finetune(job: Job, show: Callable[[str], None], processes: Processes | None = None) -> bool:
    """Train, or go on where an earlier run of the same job was left; return whether it came to its end.

    Everything but the output is in ``job.folder``: ``state.pt``, ``log.csv``, ``loss.png``, ``sheets/``, ``cache/``.

    Args:
        job: what to do.
        show: is given a line for the user now and then.
        processes: those that train together, on one folder; the first one writes, logs and shows.

    Raises:
        InputError: for clips or values that cannot be used.
        CheckpointError: if the state in the folder is of another training.
        TrainingError: if loss or gradient is not finite; the state before that step is kept.
    """
    processes = processes or Processes()
    show = show if processes.is_first else lambda line: None
    # Before the clips are encoded, which takes a while.
    processes.share(job.config.accumulate)
    with processes.in_turn():
        samples, prior, contexts = job.samples()
    show(f"{len(samples)} clips and {len(prior)} of the prior as latents in '{job.folder / _CACHE}'")
    objective, loaded = job.objective()
    trains = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    show(f"{trains:,} parameters of the {job.tuning.stage} U-Net train")
    batches = Batches(samples, prior, loaded.kind.config)
    report = Report(job.folder, job.config.steps, writes=processes.is_first)
    sheets = SampleSheets(job.models, objective, contexts, samples, job.tuning, job.folder / _SHEETS)
    with torch.enable_grad(), SignalStop() as stop:

        def on_step(training: Training) -> bool:
            report.add(training)
            every = job.tuning.sample_every if processes.is_first else 0
            if every and training.step % every == 0:
                with training.averaged():
                    show(f"wrote '{sheets.draw(training.step)}'")
            return stop.asked

        state = job.folder / _STATE
        try:
            trained = train(
                objective, batches, job.config, state, dtype=job.dtype, seed=job.tuning.seed, begun=job.begun,
                on_step=on_step, processes=processes,
            )  # fmt: skip
        finally:
            report.plot()
    if report.step < job.config.steps:
        show(f"stopped at step {report.step} of {job.config.steps}; the same command goes on from there")
        return False
    if processes.is_first:
        job.write(trained, job.config.steps)
    return True
