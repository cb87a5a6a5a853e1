"""The training loop: resumable, averaged weights, mixed precision by hand."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from ..errors import CheckpointError, InputError, TrainingError
from ..files import atomic_path
from ..runtime.devices import peak_bytes
from .processes import Processes

SAVE_EVERY_S = 60.0

Draw = Callable[[np.random.Generator, int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Curriculum:
    """A source of batches that changes over a training: ``at`` returns what draws them when a share 0..1 is done."""

    at: Callable[[float], Draw]


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps in all.
        batch: clips (or frames, MoVQ) per step.
        learning_rate: peak, after ``warmup`` steps.
        ema_decay: decay of the running average of the weights, which is what is kept.
        max_grad_norm: longer gradients are shortened to this.
        slow: name prefix of parameters that learn at 0.3 of the rate.
        cosine: whether the rate falls to zero on a cosine; a stage that another follows keeps it.
        accumulate: batches whose gradients are averaged for one step; several processes share them.
        uses_8bit: keep the optimiser's state in 8 bits, by bitsandbytes.
    """

    steps: int
    batch: int
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 1e-3
    ema_decay: float = 0.998
    max_grad_norm: float = 1.0
    slow: str | None = None
    cosine: bool = True
    accumulate: int = 1
    uses_8bit: bool = False


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Return the factor 0..1 on the peak learning rate: linear warm-up, then a cosine to zero if there is one."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if not config.cosine:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup)))


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that name these weights: any other name, shape or value gives others."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class _Gradient(nn.Module):
    """The objective with its gradient taken inside of the call: checkpointed blocks run again on the same weights."""

    def __init__(self, objective: nn.Module, share: float) -> None:
        super().__init__()
        self.objective, self.share = objective, share

    def forward(self, *batch: Tensor) -> Tensor:
        loss = self.objective(*batch)
        (loss * self.share).backward()
        return loss.detach()


class Training:
    """An objective with its optimiser, averages and progress: everything that a state file holds.

    Attributes:
        step: steps that are done.
        seconds: time that they took, of earlier runs too.
        loss: running mean of the loss.
        last: numbers of the last step: loss, learning_rate, grad_norm.
    """

    def __init__(
        self, objective: nn.Module, config: TrainConfig, dtype: torch.dtype, processes: Processes | None = None
    ) -> None:
        self.objective, self.config, self.dtype = objective, config, dtype
        self.processes = processes or Processes()
        self.share = self.processes.share(config.accumulate)
        self.weights = {k: p for k, p in objective.named_parameters() if p.requires_grad}
        self.device = next(iter(self.weights.values())).device
        is_slow = {k: bool(config.slow) and k.startswith(config.slow) for k in self.weights}
        groups = [
            {"params": [p for k, p in self.weights.items() if is_slow[k] == slow], "share": share}
            for slow, share in ((False, 1.0), (True, 0.3))
            if not slow or any(is_slow.values())
        ]
        make = _adamw_8bit() if config.uses_8bit else torch.optim.AdamW
        self.optimizer = make(groups, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay)
        self.averages = {k: p.detach().clone() for k, p in self.weights.items()}
        self.step, self.seconds, self.loss = 0, 0.0, None
        self.last: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """Return what resumes this training."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
            "averages": self.averages,
            "weights": {k: p.detach() for k, p in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def resume(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` returned."""
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]
        self.averages.update(state["averages"])
        for key, value in state["weights"].items():
            self.weights[key].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the objective have the averaged weights for a while."""
        kept = {k: p.detach().clone() for k, p in self.weights.items()}
        self._set(self.averages)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for key, parameter in self.weights.items():
            parameter.copy_(values[key])

    def take_step(self, draw: Draw, seed: int) -> None:
        """Draw batches, move the weights and their averages; random numbers are seeded by step and batch alone.

        Several processes take the same step, to rounding, that one would take with all of their batches.

        Raises:
            TrainingError: if loss or gradient is not finite; nothing has moved then.
        """
        config = self.config
        rate = config.learning_rate * learning_rate_at(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.zero_grad(set_to_none=True)
        cast = {f"objective.{k}": p.to(self.dtype) for k, p in self.objective.named_parameters()}
        gradient, loss = _Gradient(self.objective, 1 / config.accumulate), 0.0
        for i in self.share:
            rng = np.random.default_rng([self.step, 7, seed, i])
            batch = [t.to(self.device) for t in draw(rng, config.batch)]
            torch.manual_seed(int(rng.integers(2**62)))
            loss += functional_call(gradient, cast, tuple(batch)).item() / config.accumulate
        loss = self._add_up(loss)
        norm = nn.utils.clip_grad_norm_(self.weights.values(), config.max_grad_norm).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"expected a finite loss and gradient at step {self.step + 1}, got {loss:g} and {norm:g}: the state of "
                f"step {self.step} is kept; go on with a lower learning rate, or look at the clips"
            )
        self.optimizer.step()
        decay = min(config.ema_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            moved = [p.detach() for p in self.weights.values()]
            torch._foreach_lerp_(list(self.averages.values()), moved, 1 - decay)
        self.step += 1
        self.loss = loss if self.loss is None else 0.99 * self.loss + 0.01 * loss
        self.last = {"loss": loss, "learning_rate": rate, "grad_norm": norm}

    def _add_up(self, loss: float) -> float:
        """Return the loss of all processes, which then have all gradients added up."""
        if self.processes.count == 1:
            return loss
        for parameter in self.weights.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        total = torch.tensor(loss, dtype=torch.float32, device=self.device)
        self.processes.add_up([total, *(parameter.grad for parameter in self.weights.values())])
        return total.item()


def _adamw_8bit() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError(
            "expected bitsandbytes for an optimiser of 8 bits, found none: install it, or train without"
        ) from error
    return AdamW8bit


def train(
    objective: nn.Module,
    source: Draw | Curriculum,
    config: TrainConfig,
    checkpoint: Path,
    *,
    dtype: torch.dtype,
    seed: int = 0,
    begun: str | None = None,
    on_step: Callable[[Training], bool | None] | None = None,
    processes: Processes | None = None,
) -> dict[str, Tensor]:
    """Train ``objective``, whose forward maps a batch to a scalar loss, and return its averaged weights.

    The forward runs on weights cast to ``dtype`` while the optimiser keeps float32 weights; casting by hand
    instead of autocast keeps the networks free of any precision policy.

    Args:
        objective: module on the device to train on; parameters with ``requires_grad`` are trained, in float32.
        source: ``(rng, batch) -> tensors`` in float32 on the CPU; ``rng`` and torch's own generator are seeded by
            the step, so that a resumed run sees what an uninterrupted one would have seen. A curriculum gives
            another at every step.
        config: the recipe.
        checkpoint: file that holds the state; an existing one is resumed.
        dtype: float32, or bfloat16 where the processor multiplies it faster.
        seed: of the data and of the noise that the objective draws.
        begun: names what the training started from; default the fingerprint of the objective's weights.
        on_step: called after every step; returning True stops here, with the state saved.
        processes: those that train together, each of which calls this with the same arguments; the first one writes.
            They stop together where any of them stops.

    Returns:
        Averaged float32 weights of the trained parameters by name, on the CPU.

    Raises:
        CheckpointError: if the state is of a training from other start weights, or of a longer one, or if processes
            find different ones.
        TrainingError: if loss or gradient is not finite; the state before that step is saved.
    """
    begun = begun or fingerprint(objective.state_dict())
    training = Training(objective, config, dtype, processes)
    if checkpoint.exists():
        training.resume(_read_state(checkpoint, begun, config, training.device))
    _start_alike(training, checkpoint)
    clock = saved = time.monotonic()
    bar = tqdm(range(training.step, config.steps), initial=training.step, total=config.steps, desc=checkpoint.stem,
               mininterval=5, disable=not training.processes.is_first)  # fmt: skip
    try:
        for step in bar:
            training.take_step(source.at(step / config.steps) if isinstance(source, Curriculum) else source, seed)
            bar.set_postfix(loss=f"{training.loss:.4f}", **_memory(training.device), refresh=False)
            now = time.monotonic()
            training.seconds, clock = training.seconds + now - clock, now
            if training.processes.any(on_step is not None and bool(on_step(training))):
                break
            if now - saved > SAVE_EVERY_S:
                _write_state(checkpoint, begun, training)
                saved = now
    except TrainingError:
        _leave_state(checkpoint, begun, training)
        raise
    _leave_state(checkpoint, begun, training)
    return {k: v.cpu() for k, v in training.averages.items()}


def _memory(device: torch.device) -> dict[str, str]:
    peak = peak_bytes(device)
    return {} if peak is None else {"memory": f"{peak / 1e9:.1f} GB"}


def _start_alike(training: Training, checkpoint: Path) -> None:
    """Let processes start from the same step and weights, or say that they cannot."""
    if training.processes.count == 1:
        return
    step = torch.tensor(float(training.step), device=training.device)
    training.processes.copy_first([step])
    if training.processes.any(step.item() != training.step):
        raise CheckpointError(
            f"expected all {training.processes.count} processes to find the same state in {checkpoint}, found other "
            "steps: let them share that folder"
        )
    training.processes.copy_first([p.detach() for p in training.weights.values()])


def _write_state(path: Path, begun: str, training: Training) -> None:
    if not training.processes.is_first:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save({"begun": begun, **training.state()}, temporary)


def _leave_state(path: Path, begun: str, training: Training) -> None:
    """Write the last state, which no process may look for before it is there."""
    _write_state(path, begun, training)
    training.processes.any(False)


def _read_state(path: Path, begun: str, config: TrainConfig, device: torch.device) -> dict[str, Any]:
    state = torch.load(path, weights_only=True, map_location=device)
    if state.get("begun") != begun:
        raise CheckpointError(
            f"expected {path} to hold a training from the same start weights, found one from others "
            "(an earlier stage or the recipe has changed): remove it to train this stage anew"
        )
    if state["step"] > config.steps:
        raise CheckpointError(
            f"expected at most {config.steps} steps in {path}, found {state['step']}: remove it to train this stage "
            "anew"
        )
    return state
