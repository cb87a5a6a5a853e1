"""The stages of a run on the counting device, each alone in a budget: its plan, and the bytes that were counted."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fusionframes.ff_kernels.pipeline.needs import MovqPlan
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.runtime.budget import with_reserve
from fusionframes.ff_kernels.runtime.plan import Budget, Plan
from fusionframes.ff_kernels.stages.run import Text
from fusionframes.ff_kernels.stages.tokenizer import MAX_TOKENS

from . import soroban, tiny

STAGES = ("text encoder", "first frame", "keyframes", "interpolation 1", "interpolation 2", "decoding")
# About as many tokens as a plan counts with.
LONG_PROMPT = " ".join(["a large purple triangle moves up"] * 5)


@dataclass(frozen=True)
class Run:
    """What one stage did.

    Attributes:
        plan: of its network.
        counted: most bytes alive at one time, without the inputs.
        conditioner: the same until the first block of a U-Net ran; 0 for other networks.
        out: its results, on the CPU.
    """

    plan: Plan | MovqPlan
    counted: int
    conditioner: int
    out: Tensor


@dataclass
class Stage:
    """A stage of a run.

    Attributes:
        name: one of ``STAGES``.
        make: opens the files; takes a budget.
        settings: of the run.
    """

    name: str
    make: Callable[..., Pipeline]
    settings: Settings

    @cached_property
    def resident(self) -> Run:
        """The run with room for everything."""
        return self.run(Budget())

    def budget(self, share: float) -> Budget:
        """Return a budget with room for the results and a share of the weights, or for a share of all of MoVQ.

        MoVQ gives way in what it computes in and in how many frames at once: its weights all stay.
        """
        plan = self.resident.plan
        if isinstance(plan, MovqPlan):
            return Budget(with_reserve(int(plan.peak * share)))
        return Budget(with_reserve(int((plan.resident + plan.slots) * share) + plan.activations))

    def run(self, budget: Budget) -> Run:
        """Run the stage alone, with weights that nobody loaded before."""
        pipeline = self.make(budget=budget)
        work = self._work(pipeline)
        plans, peaks = [], []
        networks = pipeline.networks
        placed, movq = networks.placed, networks.movq

        def watched_placed(stage, need):
            held = placed(stage, need)
            plans.append(held.plan)
            held.network.step_blocks()[0].register_forward_pre_hook(lambda *call: peaks.append(soroban.LEDGER.peak))
            return held

        def watched_movq(stage, need):
            made = movq(stage, need)
            plans.append(made[1])
            return made

        networks.placed, networks.movq = watched_placed, watched_movq
        gc.collect()
        soroban.LEDGER.restart()
        before = soroban.LEDGER.alive
        out = work()
        counted = soroban.LEDGER.peak - before
        (plan,) = plans
        is_unet = isinstance(plan, Plan) and self.name != "text encoder"
        return Run(plan, counted, peaks[0] - before if is_unet else 0, out.cpu())

    def expected(self, plan: Plan | MovqPlan) -> Tensor:
        """Return the results with room for everything, of a MoVQ by the dtype and the chunks of a plan."""
        if not isinstance(plan, MovqPlan) or (plan.is_as_released and plan.chunk == self.resident.plan.chunk):
            return self.resident.out
        pipeline = self.make(budget=Budget())
        networks = pipeline.networks
        networks.movq = lambda stage, need: (networks._open_movq(stage, plan.dtype).network, plan)
        return self._work(pipeline)().cpu()

    def _latents(self, pipeline: Pipeline) -> Tensor:
        settings = pipeline.resolve(self.settings)
        height, width = pipeline.latent_size(settings)
        # Half of that is enough for a decoder, whose layers over time are slow in 16 bit on a processor.
        shrunk = 2 if (self.name, pipeline.release.decoder) == ("decoding", "video_movq") else 1
        return tiny.draw(settings.keyframes, 4, height // shrunk, width // shrunk).to(soroban.NAME)

    def _work(self, pipeline: Pipeline) -> Callable[[], Tensor]:
        """Return the stage as a function of nothing, its inputs on the device."""
        settings = pipeline.resolve(self.settings)
        if self.name == "text encoder":
            return lambda: pipeline.encode_text([LONG_PROMPT]).context
        if self.name == "first frame":
            picture = torch.rand(settings.height, settings.width, 3, generator=torch.Generator().manual_seed(3))
            return lambda: pipeline.encode_picture(picture, settings)
        latents = self._latents(pipeline)
        if self.name == "decoding":
            return lambda: pipeline.decode(latents, settings)
        context = tiny.draw(1, MAX_TOKENS, pipeline.models.require("keyframe")[1].config.context_dim)
        mask, lengths = torch.ones(1, MAX_TOKENS, dtype=torch.long), torch.tensor([MAX_TOKENS])
        text = Text(*(value.to(soroban.NAME) for value in (context.to(pipeline.dtype), mask, lengths)))
        if self.name == "keyframes":
            first = latents[:1] if pipeline.release.reads_image else None
            return lambda: pipeline.sample_keyframes(text, settings, first_frame=first)
        second = self.name == "interpolation 2"
        keyframes = latents[None]
        if second:
            keyframes = keyframes.repeat_interleave(4, 1)[:, 3:]
        return lambda: pipeline.interpolate(keyframes, settings, first=int(second), text=text)
