"""The training stages of the demo model, each from the files of the earlier ones to one file of its own."""

import io
import string
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..checkpoints.conversion import write_checkpoint
from ..checkpoints.detection import NULL_KEY, Kind
from ..checkpoints.folder import TOKENIZER_NAME
from ..errors import CheckpointError
from ..files import atomic_path
from ..models.configs import LatentSpace
from ..models.interpolation_unet import InterpolationUNet
from ..models.keyframe_unet import KeyframeUNet
from ..models.movq import MoVQ
from ..models.text_encoder import TextEncoder, TextProjection
from ..stages.tokenizer import Tokenizer
from ..training import losses as objectives
from ..training.initial import initialise
from ..training.loop import Course, Draw, Fit, fingerprint, train
from . import batches, recipe
from .lessons import FINISH, FIRST, Mix, draw_keyframes_and_lessons, draw_lessons, encode_twins, grown_at, make_lessons
from .start.contexts import spread_projection
from .start.keyframe_start import start_keyframes
from .start.latents import fit_latents_to_range
from .start.noise_path import hold_noise
from .world.scenes import ATTRIBUTES, caption_corpus

CORPUS_CAPTIONS = 20_000
IMAGE_DECODER = "decoder"
FINISHED_KEYFRAMES = "finish"


@dataclass(frozen=True)
class Workshop:
    """Where stages read and write, and how they compute.

    Attributes:
        folder: one ``<stage>.safetensors`` per finished stage, ``state/`` with what resumes an unfinished one.
        device: where to train.
        dtype: float32, or bfloat16 where that is faster.
        share: factor on every stage's steps and clips; the shipped weights have 1.
        seed: of the data and noise of every stage; the shipped weights have 0.
    """

    folder: Path
    device: torch.device
    dtype: torch.dtype
    share: float = 1.0
    seed: int = 0

    def scaled(self, count: int) -> int:
        """Return a number of steps or clips at this workshop's share."""
        return max(1, round(count * self.share))

    def result(self, stage: str) -> Path:
        """File of a finished stage."""
        return self.folder / f"{stage}.safetensors"

    def train(self, stage: str, objective: nn.Module, source: Draw | Course, fit: Fit) -> None:
        """Train an objective to its end; it then has the averaged weights where trained. Nothing but state is kept."""
        fit = replace(fit, steps=self.scaled(fit.steps))
        checkpoint = self.folder / "state" / f"{stage}.pt"
        averages = train(objective, source, fit, checkpoint, device=self.device, dtype=self.dtype, seed=self.seed)
        objective.cpu().load_state_dict(averages, strict=False)

    def save(self, stage: str, weights: dict[str, Tensor]) -> None:
        """Write the result of a stage."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.result(stage)) as path:
            save_file({k: v.clone().contiguous() for k, v in drop_aliases(weights).items()}, path)

    def read(self, stage: str) -> dict[str, Tensor]:
        """Return the weights of a finished stage.

        Raises:
            CheckpointError: if the stage is not finished.
        """
        if not self.result(stage).exists():
            raise CheckpointError(
                f"expected the result of stage {stage!r} in {self.result(stage)}, found no such file: run --stage "
                f"{stage} first"
            )
        return load_file(self.result(stage))

    def load(self, stage: str, objective: nn.Module) -> None:
        """Load the weights of a finished stage into an objective that holds all of them or some.

        Raises:
            CheckpointError: if the stage is not finished, or the objective holds none of them.
        """
        weights = self.read(stage)
        unknown = objective.load_state_dict(weights, strict=False).unexpected_keys
        if len(unknown) == len(weights):
            raise CheckpointError(
                f"expected weights of {type(objective).__name__} in {self.result(stage)}, found none "
                f"({', '.join(sorted(weights)[:3])}): remove the file and train stage {stage!r} again"
            )

    def clips(
        self, name: str, movq: MoVQ, count: int, encode: Callable[[MoVQ, int], batches.LatentClips]
    ) -> batches.LatentClips:
        """Return cached latents; they are encoded the first time, and anew for another MoVQ or count."""
        path, source = self.folder / "state" / f"latents_{name}.pt", f"{count} {fingerprint(movq.state_dict())}"
        if path.exists():
            stored = torch.load(path, weights_only=True)
            if stored.get("source") == source:
                scenes = tuple(batches.Scene(*words) for words in stored["scenes"])
                return batches.LatentClips(stored["latents"], scenes)
        clips = encode(movq, count)
        words = [[getattr(scene, name) for name in ATTRIBUTES] for scene in clips.scenes]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save({"source": source, "latents": clips.latents, "scenes": words}, temporary)
        return clips


def drop_aliases(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the second name of the tied token embedding, which safetensors would refuse."""
    return {k: v for k, v in weights.items() if not k.endswith("encoder.embed_tokens.weight")}


def train_tokenizer() -> bytes:
    """Train the SentencePiece model of the demo captions; whole words become pieces because they repeat.

    Captions hold lower-case letters and commas only, so capitals are folded and other marks read as spaces.
    """
    content = io.BytesIO()
    marks = (chr(code) for code in range(0x21, 0x7F) if not chr(code).isalnum() and chr(code) != ",")
    rules = [f"{ord(c):X}\t{ord(c.lower()):X}" for c in string.ascii_uppercase] + [f"{ord(c):X}\t20" for c in marks]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rules.tsv"
        table.write_text("\n".join(rules) + "\n", encoding="ascii")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(caption_corpus(0, CORPUS_CAPTIONS)), model_writer=content, model_type="unigram",
            vocab_size=recipe.VOCABULARY, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
            character_coverage=1.0, minloglevel=2, normalization_rule_tsv=str(table),
        )  # fmt: skip
    return content.getvalue()


def tokenizer(shop: Workshop) -> Tokenizer:
    """Return the trained tokenizer, training it the first time."""
    path = shop.folder / TOKENIZER_NAME
    if not path.exists():
        shop.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(train_tokenizer())
    return Tokenizer(path)


def text_parts() -> tuple[TextEncoder, TextProjection]:
    """Return an untrained text encoder and projection."""
    encoder = initialise(TextEncoder(recipe.TEXT))
    return encoder, TextProjection(recipe.TEXT.d_model, recipe.CONTEXT_DIM)


def trained_movq(shop: Workshop) -> MoVQ:
    """Return the image MoVQ with the weights of its stage, ready to encode."""
    objective = objectives.Reconstruction(MoVQ(recipe.MOVQ))
    shop.load("movq", objective)
    return objective.movq.eval()


def run_movq(shop: Workshop) -> None:
    """Train the image autoencoder on single frames and bring its latents into the sampler's range."""
    objective = objectives.Reconstruction(MoVQ(recipe.MOVQ))
    shop.train("movq", objective, batches.draw_frames, recipe.MOVQ_FIT)
    frames = batches.draw_frames(np.random.default_rng(1), shop.scaled(recipe.RANGE_FRAMES))[0]
    with torch.inference_mode():
        latents = objective.movq.encode(frames)
    fit_latents_to_range(objective.movq, latents)
    shop.save("movq", objective.state_dict())


def run_decoder(shop: Workshop) -> None:
    """Train the image decoder further over the frozen encoder, in float32 for the last decibels."""
    objective = objectives.FrozenEncoder(MoVQ(recipe.MOVQ), recipe.DECODER_SQUARED)
    shop.load("movq", objective)
    shop.train(IMAGE_DECODER, objective, draw_single, recipe.DECODER_FIT)
    shop.save(IMAGE_DECODER, objective.state_dict())


def draw_single(rng: np.random.Generator, batch: int) -> tuple[Tensor]:
    """Draw single frames as clips of one: ``[batch, 1, 3, 64, 64]`` in -1..1."""
    return (batches.draw_frames(rng, batch)[0][:, None],)


def run_video_movq(shop: Workshop) -> None:
    """Train the video decoder over the frozen encoder, starting as the image decoder."""
    objective = objectives.FrozenEncoder(initialise(MoVQ(recipe.VIDEO_MOVQ)), recipe.DECODER_SQUARED)
    shop.load(IMAGE_DECODER, objective)
    shop.train("video_movq", objective, batches.draw_windows, recipe.VIDEO_MOVQ_FIT)
    shop.save("video_movq", objective.state_dict())


def run_text(shop: Workshop) -> None:
    """Teach the text encoder to tell captions apart before the U-Net depends on it, and spread what it says."""
    objective = objectives.CaptionReading(*text_parts(), tuple(map(len, ATTRIBUTES.values())))
    draw = partial(batches.draw_captions, tokenizer=tokenizer(shop))
    shop.train("text", objective, draw, recipe.TEXT_FIT)
    encoder, projection = objective.text["encoder"], objective.text["projection"]
    rows = [tokenizer(shop).encode(caption).ids for caption in caption_corpus(1, recipe.CONTEXT_CAPTIONS)]
    with torch.inference_mode():
        hidden = torch.cat([encoder(row, torch.ones_like(row))[0] for row in rows])
    spread_projection(projection, hidden)
    shop.save("text", objective.state_dict())


def keyframe_objective() -> objectives.KeyframeNoise:
    """Return what text encoder, projection, null embedding and keyframe U-Net are trained with, untrained."""
    return objectives.KeyframeNoise(*text_parts(), initialise(KeyframeUNet(recipe.KEYFRAMES)))


def run_start(shop: Workshop) -> None:
    """Teach the U-Net's pooling to read captions and set the start values that build on it."""
    objective = keyframe_objective()
    shop.load("text", objective)
    reading = objectives.PoolingReading(objective, tuple(map(len, ATTRIBUTES.values())))
    draw = partial(batches.draw_captions_at_steps, tokenizer=tokenizer(shop))
    shop.train("start", reading, draw, recipe.READING_FIT)
    start_keyframes(objective, tokenizer(shop))
    shop.save("start", objective.state_dict())


def keyframe_clips(shop: Workshop, movq: MoVQ) -> batches.LatentClips:
    """Return the latents of the clips that the keyframe network learns from."""
    encode = partial(batches.encode_clips, seed=1, skip_frames=None)
    return shop.clips("keyframes", movq, shop.scaled(recipe.KEYFRAME_CLIPS), encode)


def run_lessons(shop: Workshop) -> None:
    """Teach the keyframe network what captions say of a clip before it sees one."""
    movq = trained_movq(shop)
    lessons = make_lessons(keyframe_clips(shop, movq), movq)
    objective = keyframe_objective()
    shop.load("start", objective)
    hold_noise(objective.unet)
    draw = partial(draw_lessons, lessons=lessons, tokenizer=tokenizer(shop))
    shop.train("lessons", objective, Course(lambda done: partial(draw, grown=grown_at(done))), recipe.LESSON_FIT)
    shop.save("lessons", objective.state_dict())


def run_keyframes(shop: Workshop) -> None:
    """Train text encoder, projection, null embedding and keyframe U-Net together."""
    _train_keyframes(shop, "lessons", "keyframes", recipe.KEYFRAME_FIT, FIRST)


def run_finish(shop: Workshop) -> None:
    """Train them on with lessons on growth, and with twins that weigh alone."""
    _train_keyframes(shop, "keyframes", FINISHED_KEYFRAMES, recipe.FINISH_FIT, FINISH)


def _train_keyframes(shop: Workshop, earlier: str, stage: str, fit: Fit, mix: Mix) -> None:
    movq = trained_movq(shop)
    clips = keyframe_clips(shop, movq)
    objective = keyframe_objective()
    shop.load(earlier, objective)
    hold_noise(objective.unet)
    draw = partial(
        draw_keyframes_and_lessons,
        clips=clips,
        lessons=make_lessons(clips, movq),
        twins=shop.clips("twins", movq, shop.scaled(recipe.TWINS), partial(encode_twins, seed=9)),
        tokenizer=tokenizer(shop),
        mix=mix,
    )
    shop.train(stage, objective, draw, fit)
    shop.save(stage, objective.state_dict())


def run_interpolation(shop: Workshop) -> None:
    """Train the interpolation U-Net on both passes mixed."""
    movq = trained_movq(shop)
    clips = {
        skip: shop.clips(
            f"skip_{skip}",
            movq,
            shop.scaled(recipe.GAP_CLIPS // 2),
            partial(batches.encode_clips, seed=2 + skip, skip_frames=skip),
        )
        for skip in batches.SKIP_FRAMES
    }
    objective = objectives.GapVelocity(initialise(InterpolationUNet(recipe.INTERPOLATION)))
    shop.train("interpolation", objective, partial(batches.draw_gaps, clips=clips), recipe.INTERPOLATION_FIT)
    shop.save("interpolation", objective.state_dict())


def measure_latent_space(movq: MoVQ, clips: Iterable[Tensor]) -> LatentSpace:
    """Fit RGB to latents by least squares: a host's previews are this matrix, enlarged.

    Args:
        movq: trained image MoVQ.
        clips: ``[F, 3, H, W]`` each, in -1..1.
    """
    rows, colours = [], []
    with torch.inference_mode():
        for pixels in clips:
            latents = movq.encode(pixels)
            small = torch.nn.functional.adaptive_avg_pool2d(pixels, latents.shape[-2:])
            rows.append(latents.movedim(1, -1).reshape(-1, latents.shape[1]))
            colours.append(small.movedim(1, -1).reshape(-1, 3))
    table = torch.cat([torch.cat(rows), torch.ones(sum(map(len, rows)), 1)], dim=1)
    solution = torch.linalg.lstsq(table, torch.cat(colours)).solution
    *factors, bias = [tuple(round(value, 4) for value in row) for row in solution.tolist()]
    return LatentSpace(movq.config.factor, tuple(factors), bias)


def run_export(shop: Workshop) -> None:
    """Collect the finished stages as folders of weights in the format of ``convert``, in half precision.

    The folders are named as ComfyUI names its model folders, so that the pack can register them as they are.
    """
    target = shop.folder / "weights"
    keyframes, gaps, decoder, video = (
        shop.read(stage) for stage in (FINISHED_KEYFRAMES, "interpolation", IMAGE_DECODER, "video_movq")
    )
    movq, words = trained_movq(shop), tokenizer(shop).processor.serialized_model_proto()
    for folder in ("diffusion_models", "text_encoders", "vae"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    with atomic_path(target / "text_encoders" / TOKENIZER_NAME) as path:
        path.write_bytes(words)
    space = measure_latent_space(movq, (batches.draw_frames(np.random.default_rng(i), 64)[0] for i in range(4)))
    parts = {
        "text_encoders/fusionframes_demo_text_encoder": (
            Kind("text_encoder", "", recipe.TEXT), _under(keyframes, "text.encoder."), None),
        "diffusion_models/fusionframes_demo_keyframes": (Kind("keyframe", "1.0", recipe.KEYFRAMES), {
            **_under(keyframes, "unet."),
            **{f"projections.t5.{k}": v for k, v in _under(keyframes, "text.projection.").items()},
            NULL_KEY: keyframes[NULL_KEY],
        }, space.to_dict()),
        "diffusion_models/fusionframes_demo_interpolation": (
            Kind("interpolation", "1.0", recipe.INTERPOLATION),
            {**_under(gaps, "unet."), NULL_KEY: gaps[NULL_KEY]}, space.to_dict()),
        "vae/fusionframes_demo_movq": (
            Kind("movq", "", recipe.MOVQ), _under(decoder, "movq."), None),
        "vae/fusionframes_demo_video_movq": (
            Kind("video_movq", "", recipe.VIDEO_MOVQ), _under(video, "movq."), None),
    }  # fmt: skip
    for name, (kind, tensors, latents) in parts.items():
        write_checkpoint(target / f"{name}.safetensors", kind, tensors, torch.float16, latents)


def _under(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def run_stage(stage: str, shop: Workshop) -> None:
    """Run one of ``STAGES``; start values depend on the workshop's seed alone, so that a resumed run has the same."""
    torch.manual_seed(shop.seed)
    STAGES[stage](shop)


STAGES: dict[str, Callable[[Workshop], None]] = {
    "movq": run_movq,
    "decoder": run_decoder,
    "video_movq": run_video_movq,
    "text": run_text,
    "start": run_start,
    "lessons": run_lessons,
    "keyframes": run_keyframes,
    FINISHED_KEYFRAMES: run_finish,
    "interpolation": run_interpolation,
    "export": run_export,
}
