"""Training data of the demo model: random scenes, their pixels, captions and latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..models.masked_unet import GROUP_FRAMES
from ..models.movq import MoVQ
from ..stages.interpolation import SKIP_FRAMES
from ..stages.tokenizer import Tokenizer, pad_tokens
from ..training.batches import gap_frames, perturb
from ..training.loop import fingerprint
from ..training.noise_levels import draw_noise_levels, draw_normal
from ..training.run_folder import TrainRun
from .world.scenes import (
    ATTRIBUTES,
    KEYFRAMES,
    MEDIUM_FRAMES,
    Scene,
    all_scenes,
    frame_times,
    is_held_out,
    paraphrase,
    render,
    reversed_scene,
    sample_layout,
)

TRAINING_SCENES = tuple(scene for scene in all_scenes() if not is_held_out(scene))
HELD_OUT_SCENES = tuple(scene for scene in all_scenes() if is_held_out(scene))

CAPTION_DROPOUT = 0.12
KEYFRAME_DROPOUT = 0.1


@dataclass(frozen=True)
class LatentClips:
    """Clips as latents: ``latents [clips, F, 4, h, w]`` in float16 and what each clip shows."""

    latents: Tensor
    scenes: tuple[Scene, ...]


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw one training scene; held-out combinations never appear."""
    return TRAINING_SCENES[rng.integers(len(TRAINING_SCENES))]


def draw_clip(rng: np.random.Generator, scene: Scene, times: Tensor) -> Tensor:
    """Draw a clip of ``scene`` at ``times`` (``[F]`` in 0..1): ``[F, 3, 64, 64]`` in -1..1."""
    return render(scene, sample_layout(scene, rng), times) * 2 - 1


def draw_frames(rng: np.random.Generator, batch: int) -> tuple[Tensor]:
    """Draw single frames of ``batch`` random clips: ``[batch, 3, 64, 64]`` in -1..1."""
    times = torch.from_numpy(rng.random((batch, 1))).float()
    return (torch.cat([draw_clip(rng, draw_scene(rng), times[i]) for i in range(batch)]),)


def window_times(rng: np.random.Generator, skip_frames: int) -> Tensor:
    """Return 17 times at the spacing of an interpolation pass: the whole clip, or a quarter of it."""
    if skip_frames == max(SKIP_FRAMES):
        return frame_times(MEDIUM_FRAMES)
    return frame_times(MEDIUM_FRAMES) / 4 + rng.integers(49) / 64


def draw_windows(rng: np.random.Generator, batch: int, frames: int = KEYFRAMES) -> tuple[Tensor]:
    """Draw clips of ``frames`` neighbouring frames at random spacing: ``[batch, frames, 3, 64, 64]`` in -1..1."""
    clips = []
    for _ in range(batch):
        times = window_times(rng, SKIP_FRAMES[rng.integers(2)])
        start = rng.integers(len(times) - frames + 1)
        clips.append(draw_clip(rng, draw_scene(rng), times[start : start + frames]))
    return (torch.stack(clips),)


@torch.inference_mode()
def encode_clips(movq: MoVQ, count: int, seed: int, skip_frames: int | None) -> LatentClips:
    """Encode ``count`` clips: keyframes of whole clips, or with ``skip_frames`` 17 frames of that pass."""
    latents, scenes = [], []
    for i in tqdm(range(count), desc="latents", mininterval=5):
        rng = np.random.default_rng([seed, i])
        scene = draw_scene(rng)
        times = frame_times(KEYFRAMES) if skip_frames is None else window_times(rng, skip_frames)
        latents.append(movq.encode(draw_clip(rng, scene, times)).half())
        scenes.append(scene)
    return LatentClips(torch.stack(latents), tuple(scenes))


def cached_clips(
    run: TrainRun, name: str, movq: MoVQ, count: int, encode: Callable[[MoVQ, int], LatentClips]
) -> LatentClips:
    """Return latents that a run keeps; they are encoded the first time, and anew for another MoVQ or count."""

    def make() -> dict[str, Any]:
        clips = encode(movq, count)
        words = [[getattr(scene, name) for name in ATTRIBUTES] for scene in clips.scenes]
        return {"latents": clips.latents, "scenes": words}

    stored = run.cached(f"latents_{name}", f"{count} {fingerprint(movq.state_dict())}", make)
    return LatentClips(stored["latents"], tuple(Scene(*words) for words in stored["scenes"]))


def tokenize(tokenizer: Tokenizer, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Tokenize captions: ids and mask ``[B, L]``, see ``pad_tokens``."""
    return pad_tokens([tokenizer.encode(caption).ids for caption in captions])


def draw_captions(rng: np.random.Generator, batch: int, tokenizer: Tokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """Draw canonical captions with their attributes: ids, mask ``[B, L]`` and class numbers ``[B, 5]``."""
    scenes = [draw_scene(rng) for _ in range(batch)]
    labels = [[words.index(getattr(scene, name)) for name, words in ATTRIBUTES.items()] for scene in scenes]
    return *tokenize(tokenizer, [scene.caption() for scene in scenes]), torch.tensor(labels)


def draw_captions_at_steps(
    rng: np.random.Generator, batch: int, tokenizer: Tokenizer
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw what ``draw_captions`` draws, and a timestep for each: ``[B]``."""
    return *draw_captions(rng, batch, tokenizer), draw_noise_levels(rng, batch)[0]


def run_backwards(latents: Tensor, backwards: np.ndarray) -> Tensor:
    """Return clips ``[B, F, 4, h, w]``, those where ``backwards [B]`` is true with their frames in reverse."""
    return torch.where(torch.from_numpy(backwards)[:, None, None, None, None], latents.flip(1), latents)


def reverse_scenes(scenes: list[Scene], backwards: np.ndarray) -> list[Scene]:
    """Return what clips of ``scenes`` show when those where ``backwards [B]`` is true run backwards."""
    return [reversed_scene(scene) if back else scene for scene, back in zip(scenes, backwards, strict=True)]


def draw_keyframes(
    rng: np.random.Generator, batch: int, clips: LatentClips, tokenizer: Tokenizer
) -> tuple[Tensor, ...]:
    """Draw a batch for ``KeyframeNoise``; half of the clips run backwards under the reversed caption."""
    picks = rng.integers(len(clips.scenes), size=batch)
    backwards = rng.random(batch) < 0.5
    latents = run_backwards(clips.latents[torch.from_numpy(picks)].float(), backwards)
    scenes = reverse_scenes([clips.scenes[pick] for pick in picks], backwards)
    ids, mask = tokenize(tokenizer, [paraphrase(scene, rng) for scene in scenes])
    keep = torch.from_numpy(rng.random(batch) >= CAPTION_DROPOUT)
    return latents, draw_normal(rng, latents), ids, mask, keep, *draw_noise_levels(rng, batch)


def draw_gaps(rng: np.random.Generator, batch: int, clips: dict[int, LatentClips]) -> tuple[Tensor, ...]:
    """Draw a batch for ``GapVelocity``: both passes mixed, keyframes perturbed or dropped as in the paper."""
    windows, perturbed, *conditions = _draw_perturbed(rng, batch, clips)
    inner = gap_frames(windows)
    return perturbed, inner, draw_normal(rng, inner), *conditions, *draw_noise_levels(rng, batch)


def draw_groups(rng: np.random.Generator, batch: int, clips: dict[int, LatentClips]) -> tuple[Tensor, ...]:
    """Draw a batch for ``MaskedVelocity``: clips, perturbation and dropout as ``draw_gaps`` draws them."""
    windows, perturbed, *conditions = _draw_perturbed(rng, batch, clips)
    groups = torch.stack([windows[:, i : i + GROUP_FRAMES] for i in range(0, windows.shape[1] - 1, 4)], dim=1)
    return perturbed, groups, draw_normal(rng, groups), *conditions, *draw_noise_levels(rng, batch)


def _draw_perturbed(rng: np.random.Generator, batch: int, clips: dict[int, LatentClips]) -> tuple[Tensor, ...]:
    """Draw windows ``[B, 17, 4, h, w]``, their perturbed keyframes, what is kept, the skips and the levels."""
    skips = [SKIP_FRAMES[rng.integers(2)] for _ in range(batch)]
    rows = [clips[skip].latents[rng.integers(len(clips[skip].scenes))].float() for skip in skips]
    windows = torch.stack([row.flip(0) if rng.random() < 0.5 else row for row in rows])  # [B, 17, 4, h, w]
    perturbed, level = perturb(rng, windows[:, ::4])
    keep = torch.from_numpy((rng.random(batch) >= KEYFRAME_DROPOUT).astype(np.float32))
    return windows, perturbed, keep, torch.tensor(skips), level
