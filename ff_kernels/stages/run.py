"""What every sampling stage shares: its text, how it runs, and its guidance branches as one function.

B clips, T frames, N samples, h and w latent sides.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..models.conditions import Conditions
from ..models.text_encoder import null_context
from ..models.unet import UNet
from ..sampling.guidance import Predict, in_turn
from ..sampling.noise import Noise
from ..sampling.samplers import Callback


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
    def stack(texts: "list[Text]") -> "Text":
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
        conditioner: entered while ``prepare`` runs: brings the weights that only it reads to the device.
        graphs: makes a function of tensors a recorded one (``runtime.graph``); None runs every step anew.
    """

    noise: Noise
    stacked: bool = True
    callback: Callback | None = None
    conditioner: AbstractContextManager = field(default_factory=nullcontext)
    graphs: "StepRecorder | None" = None


class StepRecorder(Protocol):
    """Where recorded steps come from."""

    def replayed(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a function that repeats the work of the first call on the tensors it is given."""


def branches(
    unet: UNet,
    texts: list[Text],
    prepare: Callable[[Text, list[int]], Conditions],
    inputs: Callable[[Tensor], list[Tensor]],
    run: Run,
) -> Predict:
    """Return the guidance branches as one ``(x, step) -> predictions [branches * N, ...]``, stacked or in turn.

    Args:
        unet: network of the stage.
        texts: what each branch reads, B clips each.
        prepare: conditions of some branches, from their stacked texts and their numbers.
        inputs: what each branch is shown, from the noisy latents.
        run: branch order, recorder, what is entered while ``prepare`` runs.
    """
    dtype = texts[0].context.dtype

    def predicting(rows: Text, branches: list[int]) -> Predict:
        step_of = step_function(unet, prepare(rows, branches), run.graphs)

        def predict(x: Tensor, step: int) -> Tensor:
            parts = inputs(x)
            x = torch.cat([parts[i] for i in branches]) if len(branches) > 1 else parts[branches[0]]
            return step_of(x.to(dtype).contiguous(memory_format=torch.channels_last), step)

        return predict

    with run.conditioner:
        if run.stacked:
            return predicting(Text.stack(texts), list(range(len(texts))))
        return in_turn([predicting(text, [i]) for i, text in enumerate(texts)])


def step_function(unet: UNet, conditions: Conditions, graphs: StepRecorder | None) -> Predict:
    """Return the network under prepared conditions as ``(x, step) -> prediction``, recorded where ``graphs`` are given.

    A recorded prediction lives until the next call.
    """
    if graphs is None:
        return lambda x, step: unet(x, conditions, step)
    replayed = graphs.replayed(lambda x, *rows: unet(x, conditions.with_rows(rows)))
    return lambda x, step: replayed(x, *conditions.rows_of(step))
