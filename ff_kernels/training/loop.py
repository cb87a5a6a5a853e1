"""One training loop for every stage of the demo model: resumable, averaged weights, mixed precision by hand."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from ..errors import CheckpointError
from ..files import atomic_path

SAVE_EVERY_S = 60.0


Draw = Callable[[np.random.Generator, int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Course:
    """A source of batches that changes over a training: ``at`` returns what draws them when a share 0..1 is done."""

    at: Callable[[float], Draw]


@dataclass(frozen=True)
class Fit:
    """How one stage is trained.

    Attributes:
        steps: optimiser steps in all.
        batch: clips (or frames, MoVQ) per step.
        learning_rate: peak, after ``warmup`` steps.
        falls: whether the rate falls to zero on a cosine; a stage that another follows keeps it.
        slow: name prefix of parameters that learn at 0.3 of the rate.
        average: decay of the running average of the weights, which is what is kept.
    """

    steps: int
    batch: int
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 1e-3
    average: float = 0.998
    clip: float = 1.0
    slow: str | None = None
    falls: bool = True


def learning_rate_at(step: int, fit: Fit) -> float:
    """Return the factor 0..1 on the peak learning rate: linear warm-up, then a cosine to zero if it falls."""
    if step < fit.warmup:
        return (step + 1) / fit.warmup
    if not fit.falls:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - fit.warmup) / max(1, fit.steps - fit.warmup)))


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that name these weights: any other name, shape or value gives others."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def train(
    objective: nn.Module,
    source: Draw | Course,
    fit: Fit,
    checkpoint: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Train ``objective``, whose forward maps a batch to a scalar loss, and return its averaged weights.

    The forward runs on weights cast to ``dtype`` while the optimiser keeps float32 weights; casting by hand
    instead of autocast keeps the networks free of any precision policy.

    Args:
        objective: module in float32; parameters with ``requires_grad`` are trained.
        source: ``(rng, batch) -> tensors`` in float32 on the CPU; ``rng`` and torch's own generator are seeded by
            the step, so that a resumed run sees what an uninterrupted one would have seen. A course gives another
            at every step.
        fit: the recipe.
        checkpoint: file that holds the state; an existing one is resumed.
        device: where to train.
        dtype: float32, or bfloat16 where the processor multiplies it faster.
        seed: of the data and of the noise that the objective draws.

    Returns:
        Averaged float32 weights of the trained parameters by name, on the CPU.

    Raises:
        CheckpointError: if the state is of a training from other start weights, or of a longer one.
    """
    begun = fingerprint(objective.state_dict())
    objective.to(device)
    weights = {k: p for k, p in objective.named_parameters() if p.requires_grad}
    slow = [p for k, p in weights.items() if fit.slow and k.startswith(fit.slow)]
    fast = [p for k, p in weights.items() if not (fit.slow and k.startswith(fit.slow))]
    groups = [{"params": fast, "share": 1.0}] + ([{"params": slow, "share": 0.3}] if slow else [])
    optimizer = torch.optim.AdamW(groups, lr=fit.learning_rate, betas=(0.9, 0.99), weight_decay=fit.weight_decay)
    averages = {k: p.detach().clone() for k, p in weights.items()}
    start, seconds, running = 0, 0.0, None
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        if state.get("begun") != begun:
            raise CheckpointError(
                f"expected {checkpoint} to hold a training from the same start weights, found one from others "
                "(an earlier stage or the recipe has changed): remove it to train this stage anew"
            )
        if state["step"] > fit.steps:
            raise CheckpointError(
                f"expected at most {fit.steps} steps in {checkpoint}, found {state['step']}: remove it to train this "
                "stage anew"
            )
        start, seconds, running = state["step"], state["seconds"], state["loss"]
        averages.update(state["averages"])
        with torch.no_grad():
            for key, value in state["weights"].items():
                weights[key].copy_(value)
        optimizer.load_state_dict(state["optimizer"])

    def save(step: int) -> None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(checkpoint) as path:
            torch.save(
                {
                    "begun": begun,
                    "step": step,
                    "seconds": seconds,
                    "loss": running,
                    "averages": averages,
                    "weights": {k: p.detach() for k, p in weights.items()},
                    "optimizer": optimizer.state_dict(),
                },
                path,
            )

    clock = saved = time.monotonic()
    bar = tqdm(range(start, fit.steps), initial=start, total=fit.steps, desc=checkpoint.stem, mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = fit.learning_rate * learning_rate_at(step, fit) * group["share"]
        draw = source.at(step / fit.steps) if isinstance(source, Course) else source
        rng = np.random.default_rng([step, 7, seed])
        batch = [t.to(device) for t in draw(rng, fit.batch)]
        torch.manual_seed(int(rng.integers(2**62)))
        cast = {k: p.to(dtype) for k, p in objective.named_parameters()}
        loss = functional_call(objective, cast, tuple(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights.values(), fit.clip)
        optimizer.step()
        decay = min(fit.average, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(averages.values()), [p.detach() for p in weights.values()], 1 - decay)
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)
        now = time.monotonic()
        seconds, clock = seconds + now - clock, now
        if now - saved > SAVE_EVERY_S:
            save(step + 1)
            saved = now
    save(fit.steps)
    return {k: v.cpu() for k, v in averages.items()}
