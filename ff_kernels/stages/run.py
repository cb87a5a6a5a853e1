"""What every sampling stage shares: its text, how it runs, its guidance branches, and the one way to sample them.

B clips, T frames, N samples, h and w latent sides.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..models.conditions import Conditions
from ..models.configs import UNetConfig, check_sides
from ..models.text_encoder import null_context
from ..models.unet import UNet
from ..sampling.guidance import Predict, in_turn
from ..sampling.levels import choose_timesteps, trained_levels
from ..sampling.noise import Noise
from ..sampling.samplers import Callback, sample_latents
from ..sampling.schedule import Schedule, make_schedule_v10, make_schedule_v11
from ..sampling.solvers import find_solver
from .presets import AS_RELEASED, RELEASED, Plan
from .releases import Sampling


@dataclass(frozen=True)
class Text:
    """What one guidance branch reads.

    Attributes:
        context: ``[B, L, D]`` in the dtype to compute in.
        mask: ``[B, L]``, non-zero where a token is valid.
        lengths: ``[B]`` tokens of each prompt plus one: what the pooling mean divides by.
    """

    context: Tensor
    mask: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, context: Tensor, mask: Tensor) -> "Text":
        """Wrap a context whose rows all count to their end."""
        return cls(context, mask, torch.full((context.shape[0],), context.shape[1], device=context.device))

    def unconditional(self, null_embedding: Tensor) -> "Text":
        """Return the null text that stands beside this one; its pooling depends on the prompts' lengths."""
        rows, length = self.mask.shape
        return Text(*null_context(null_embedding.to(self.context), rows, length), self.lengths)

    @staticmethod
    def stack(texts: "Sequence[Text]") -> "Text":
        """Concatenate branches along the rows, padding to the longest."""
        longest = max(t.mask.shape[1] for t in texts)
        padded = [(longest - t.mask.shape[1], t) for t in texts]
        return Text(
            torch.cat([torch.nn.functional.pad(t.context, (0, 0, 0, gap)) for gap, t in padded]),
            torch.cat([torch.nn.functional.pad(t.mask, (0, gap)) for gap, t in padded]),
            torch.cat([t.lengths for t in texts]),
        )


@dataclass(frozen=True)
class Run:
    """How a sampling stage runs, beside its inputs.

    Attributes:
        noise: where random numbers come from.
        stacked: run the guidance branches in one batch (faster) or one after the other (less memory).
        callback: called after every step; returning True stops the run.
        preparing: entered while ``prepare`` runs: brings the weights that only it reads to the device.
        graphs: makes a function of tensors a recorded one (``runtime.graph``); None runs every step anew.
        plan: solver and levels where they are not the release's own.
    """

    noise: Noise
    stacked: bool = True
    callback: Callback | None = None
    preparing: AbstractContextManager = field(default_factory=nullcontext)
    graphs: "StepRecorder | None" = None
    plan: Plan = AS_RELEASED


@dataclass(frozen=True)
class Branch:
    """One branch of the guidance.

    Attributes:
        text: what it reads, B clips.
        weight: its factor in the mix.
        show: from the noisy latents to the input of the network.
        merge: factor on the temporal merges of the network, None for a network without any.
    """

    text: Text
    weight: float
    show: Callable[[Tensor], Tensor] = lambda x: x
    merge: float | None = None


class StepRecorder(Protocol):
    """Where recorded steps come from."""

    def replayed(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a function that repeats the work of the first call on the tensors it is given."""


def run_stage(
    unet: UNet, sampling: Sampling, branches: Sequence[Branch], start: Tensor, run: Run, **given: Any
) -> Tensor:
    """Sample one stage: schedule, conditions, guidance branches, loop.

    Args:
        unet: network of the stage.
        sampling: how the release samples it; steps 1 .. 1000.
        branches: of the guidance, B clips each.
        start: ``[N, C, h, w]`` standard normal noise, on the device to run on.
        run: noise source, branch order, callback.
        given: what ``unet.prepare`` reads besides text and timesteps.

    Returns:
        ``[N, C, h, w]`` float32 latents.

    Raises:
        InputError: if the steps are out of range or the network cannot halve a side.
    """
    check_sides(*start.shape[:-3:-1], unet.config.side_multiple, "latent positions")
    schedule = sampling_schedule(sampling, unet.config, run.plan)

    def prepare(some: Sequence[Branch]) -> Conditions:
        rows = Text.stack([branch.text for branch in some])
        merges = [branch.merge for branch in some if branch.merge is not None]
        merge = {"merge": torch.tensor(merges).repeat_interleave(len(some[0].text.context))} if merges else {}
        return unet.prepare(rows.context, rows.mask, schedule.timesteps, lengths=rows.lengths, **given, **merge)

    low, high = run.plan.guided or (0.0, math.inf)
    is_guided = [low <= sigma <= high for sigma in schedule.sigmas[:-1].tolist()]
    mixed = _predict(unet, branches, prepare, run) if any(is_guided) else None
    # Without guidance the first branch, which reads everything, says all.
    alone = None if all(is_guided) else _predict(unet, branches[:1], prepare, run)
    weights = tuple(branch.weight for branch in branches)
    return sample_latents(
        lambda x, step: (mixed if is_guided[step] else alone)(x, step), start, schedule, run.noise,
        weights=[weights if mixes else (1.0,) for mixes in is_guided],
        predicted=sampling.predicted, threshold=sampling.threshold, callback=run.callback,
    )  # fmt: skip


def sampling_schedule(sampling: Sampling, config: UNetConfig | None = None, plan: Plan = AS_RELEASED) -> Schedule:
    """Return the schedule of a stage: the release's own, or that of a plan through the levels the network learnt.

    Args:
        sampling: how the release samples the stage.
        config: of the network; the release's own formula does not read it.
        plan: solver and levels.

    Raises:
        InputError: if the steps are out of range.
    """
    if plan.solver != RELEASED:
        levels = trained_levels(config.family, config.timestep_offset, to_the_end=sampling.predicted == "v")
        timesteps = choose_timesteps(levels, sampling.steps, plan.spacing, plan.start)
        return find_solver(plan.solver, plan.eta)(timesteps, levels.bars_of(timesteps))
    if sampling.spacing is None:
        return make_schedule_v10(sampling.steps)
    return make_schedule_v11(sampling.steps, sampling.spacing)


def _predict(
    unet: UNet, branches: Sequence[Branch], prepare: Callable[[Sequence[Branch]], Conditions], run: Run
) -> Predict:
    """Return the branches as one ``(x, step) -> predictions [branches * N, ...]``, stacked or in turn."""
    dtype = branches[0].text.context.dtype

    def predicting(some: Sequence[Branch]) -> Predict:
        step_of = step_function(unet, prepare(some), run.graphs)

        def predict(x: Tensor, step: int) -> Tensor:
            shown = [branch.show(x) for branch in some]
            x = torch.cat(shown) if len(shown) > 1 else shown[0]
            return step_of(x.to(dtype).contiguous(memory_format=torch.channels_last), step)

        return predict

    with run.preparing:
        if run.stacked:
            return predicting(branches)
        return in_turn([predicting([branch]) for branch in branches])


def step_function(unet: UNet, conditions: Conditions, graphs: StepRecorder | None) -> Predict:
    """Return the network under prepared conditions as ``(x, step) -> prediction``, recorded where ``graphs`` are given.

    A recorded prediction lives until the next call.
    """
    if graphs is None:
        return lambda x, step: unet(x, conditions, step)
    replayed = graphs.replayed(lambda x, *rows: unet(x, conditions.with_rows(rows)))
    return lambda x, step: replayed(x, *conditions.rows_of(step))
