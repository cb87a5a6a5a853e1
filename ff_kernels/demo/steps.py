"""The training stages of the demo model, each from the files of the earlier ones to one file of its own."""

import io
import string
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from ..checkpoints.conversion import write_checkpoint
from ..checkpoints.detection import NULL_KEY, Kind
from ..checkpoints.folder import TOKENIZER_NAME
from ..files import atomic_path
from ..models.configs import LatentSpace
from ..models.interpolation_unet import InterpolationUNet
from ..models.keyframe_unet import KeyframeUNet
from ..models.movq import MoVQ
from ..models.text_encoder import TextEncoder, TextProjection
from ..stages.interpolation import SKIP_FRAMES
from ..stages.tokenizer import Tokenizer
from ..training import losses
from ..training.initial import initialise
from ..training.loop import Curriculum, TrainConfig
from ..training.run_folder import TrainRun
from . import batches, recipe
from .lessons import FINISH, FIRST, Mix, draw_keyframes_and_lessons, draw_lessons, encode_twins, grown_at, make_lessons
from .reading import CaptionReading, PoolingReading
from .start.contexts import spread_projection
from .start.keyframe_start import start_keyframes
from .start.latents import fit_latents_to_range
from .start.noise_path import hold_noise
from .world.scenes import ATTRIBUTES, caption_corpus

CORPUS_CAPTIONS = 20_000
IMAGE_DECODER = "decoder"
FINISHED_KEYFRAMES = "finish"


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


def tokenizer(run: TrainRun) -> Tokenizer:
    """Return the trained tokenizer, training it the first time."""
    path = run.folder / TOKENIZER_NAME
    if not path.exists():
        run.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(train_tokenizer())
    return Tokenizer(path)


def text_parts() -> tuple[TextEncoder, TextProjection]:
    """Return an untrained text encoder and projection."""
    encoder = initialise(TextEncoder(recipe.TEXT))
    return encoder, TextProjection(recipe.TEXT.d_model, recipe.CONTEXT_DIM)


def trained_movq(run: TrainRun) -> MoVQ:
    """Return the image MoVQ with the weights of its stage, ready to encode."""
    objective = losses.Reconstruction(MoVQ(recipe.MOVQ))
    run.load("movq", objective)
    return objective.movq.eval()


def run_movq(run: TrainRun) -> None:
    """Train the image autoencoder on single frames and bring its latents into the sampler's range."""
    objective = losses.Reconstruction(MoVQ(recipe.MOVQ))
    run.train("movq", objective, batches.draw_frames, recipe.MOVQ_TRAINING)
    frames = batches.draw_frames(np.random.default_rng(1), run.scaled(recipe.RANGE_FRAMES))[0]
    with torch.inference_mode():
        latents = objective.movq.encode(frames)
    fit_latents_to_range(objective.movq, latents)
    run.save("movq", objective.state_dict())


def run_decoder(run: TrainRun) -> None:
    """Train the image decoder further over the frozen encoder, in float32 for the last decibels."""
    objective = losses.FrozenEncoder(MoVQ(recipe.MOVQ), recipe.DECODER_SQUARED)
    run.load("movq", objective)
    run.train(IMAGE_DECODER, objective, draw_single, recipe.DECODER_TRAINING)
    run.save(IMAGE_DECODER, objective.state_dict())


def draw_single(rng: np.random.Generator, batch: int) -> tuple[Tensor]:
    """Draw single frames as clips of one: ``[batch, 1, 3, 64, 64]`` in -1..1."""
    return (batches.draw_frames(rng, batch)[0][:, None],)


def run_video_movq(run: TrainRun) -> None:
    """Train the video decoder over the frozen encoder, starting as the image decoder."""
    objective = losses.FrozenEncoder(initialise(MoVQ(recipe.VIDEO_MOVQ)), recipe.DECODER_SQUARED)
    run.load(IMAGE_DECODER, objective)
    run.train("video_movq", objective, batches.draw_windows, recipe.VIDEO_MOVQ_TRAINING)
    run.save("video_movq", objective.state_dict())


def run_text(run: TrainRun) -> None:
    """Teach the text encoder to tell captions apart before the U-Net depends on it, and spread what it says."""
    objective = CaptionReading(*text_parts(), tuple(map(len, ATTRIBUTES.values())))
    draw = partial(batches.draw_captions, tokenizer=tokenizer(run))
    run.train("text", objective, draw, recipe.TEXT_TRAINING)
    encoder, projection = objective.text["encoder"], objective.text["projection"]
    rows = [tokenizer(run).encode(caption).ids for caption in caption_corpus(1, recipe.CONTEXT_CAPTIONS)]
    with torch.inference_mode():
        hidden = torch.cat([encoder(row, torch.ones_like(row))[0] for row in rows])
    spread_projection(projection, hidden)
    run.save("text", objective.state_dict())


def keyframe_objective() -> losses.KeyframeNoise:
    """Return what text encoder, projection, null embedding and keyframe U-Net are trained with, untrained."""
    return losses.KeyframeNoise(*text_parts(), initialise(KeyframeUNet(recipe.KEYFRAMES)))


def run_start(run: TrainRun) -> None:
    """Teach the U-Net's pooling to read captions and set the start values that build on it."""
    objective = keyframe_objective()
    run.load("text", objective)
    reading = PoolingReading(objective, tuple(map(len, ATTRIBUTES.values())))
    draw = partial(batches.draw_captions_at_steps, tokenizer=tokenizer(run))
    run.train("start", reading, draw, recipe.READING_TRAINING)
    start_keyframes(objective, tokenizer(run))
    run.save("start", objective.state_dict())


def keyframe_clips(run: TrainRun, movq: MoVQ) -> batches.LatentClips:
    """Return the latents of the clips that the keyframe network learns from."""
    encode = partial(batches.encode_clips, seed=1, skip_frames=None)
    return batches.cached_clips(run, "keyframes", movq, run.scaled(recipe.KEYFRAME_CLIPS), encode)


def run_lessons(run: TrainRun) -> None:
    """Teach the keyframe network what captions say of a clip before it sees one."""
    movq = trained_movq(run)
    lessons = make_lessons(keyframe_clips(run, movq), movq)
    objective = keyframe_objective()
    run.load("start", objective)
    hold_noise(objective.unet)
    draw = partial(draw_lessons, lessons=lessons, tokenizer=tokenizer(run))
    run.train(
        "lessons", objective, Curriculum(lambda done: partial(draw, grown=grown_at(done))), recipe.LESSON_TRAINING
    )
    run.save("lessons", objective.state_dict())


def run_keyframes(run: TrainRun) -> None:
    """Train text encoder, projection, null embedding and keyframe U-Net together."""
    _train_keyframes(run, "lessons", "keyframes", recipe.KEYFRAME_TRAINING, FIRST)


def run_finish(run: TrainRun) -> None:
    """Train them on with lessons on growth, and with twins that weigh alone."""
    _train_keyframes(run, "keyframes", FINISHED_KEYFRAMES, recipe.FINISH_TRAINING, FINISH)


def _train_keyframes(run: TrainRun, earlier: str, stage: str, config: TrainConfig, mix: Mix) -> None:
    movq = trained_movq(run)
    clips = keyframe_clips(run, movq)
    objective = keyframe_objective()
    run.load(earlier, objective)
    hold_noise(objective.unet)
    draw = partial(
        draw_keyframes_and_lessons,
        clips=clips,
        lessons=make_lessons(clips, movq),
        twins=batches.cached_clips(run, "twins", movq, run.scaled(recipe.TWINS), partial(encode_twins, seed=9)),
        tokenizer=tokenizer(run),
        mix=mix,
    )
    run.train(stage, objective, draw, config)
    run.save(stage, objective.state_dict())


def run_interpolation(run: TrainRun) -> None:
    """Train the interpolation U-Net on both passes mixed."""
    movq = trained_movq(run)
    clips = {
        skip: batches.cached_clips(
            run,
            f"skip_{skip}",
            movq,
            run.scaled(recipe.GAP_CLIPS // 2),
            partial(batches.encode_clips, seed=2 + skip, skip_frames=skip),
        )
        for skip in SKIP_FRAMES
    }
    objective = losses.GapVelocity(initialise(InterpolationUNet(recipe.INTERPOLATION)))
    run.train("interpolation", objective, partial(batches.draw_gaps, clips=clips), recipe.INTERPOLATION_TRAINING)
    run.save("interpolation", objective.state_dict())


def measure_latent_space(movq: MoVQ, clips: Iterable[Tensor]) -> LatentSpace:
    """TrainConfig RGB to latents by least squares: a host's previews are this matrix, enlarged.

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


def run_export(run: TrainRun) -> None:
    """Collect the finished stages as folders of weights in the format of ``convert``, in half precision.

    The folders are named as ComfyUI names its model folders, so that the pack can register them as they are.
    """
    target = run.folder / "weights"
    keyframes, gaps, decoder, video = (
        run.read(stage) for stage in (FINISHED_KEYFRAMES, "interpolation", IMAGE_DECODER, "video_movq")
    )
    movq, words = trained_movq(run), tokenizer(run).processor.serialized_model_proto()
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


def run_stage(stage: str, run: TrainRun) -> None:
    """Run one of ``STAGES``; start values depend on the run's seed alone, so that a resumed run has the same."""
    torch.manual_seed(run.seed)
    STAGES[stage](run)


STAGES: dict[str, Callable[[TrainRun], None]] = {
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
