"""The plan of a whole run before anything is loaded: per stage, what stays on the device and what passes through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from torch import nn

from ..checkpoints.detection import Config, Kind
from ..checkpoints.folding import Parity, Target
from ..checkpoints.loading import bare_network
from ..errors import DeviceError
from ..ops.rounding import round_weights
from ..runtime.budget import ENCODE
from ..runtime.placing import blocks_of
from ..runtime.plan import Blocks, Budget, Plan, plan_network, size_of
from ..stages.interpolation import GAP_STAGES
from ..stages.narrow import LEAST_DB, words_of
from .needs import (
    Batch,
    MovqNeed,
    MovqPlan,
    Need,
    decoding_need,
    interpolation_batch,
    keyframe_batch,
    text_need,
    unet_need,
)
from .settings import LEVELS, Settings

if TYPE_CHECKING:
    from .pipeline import Pipeline

_WAITING = {"device": "", "memory": "memory", "file": "the file"}


@dataclass(frozen=True)
class StagePlan:
    """Plan of one stage.

    Attributes:
        title: what the stage is called.
        plan: of its network.
        has_branches: whether it runs guidance branches.
    """

    title: str
    plan: Plan | MovqPlan
    has_branches: bool = True

    def row(self) -> list[str]:
        """Return the cells of ``TITLES``."""
        plan = self.plan
        if isinstance(plan, MovqPlan):
            cells = [plan.weights, 0, plan.activations, plan.peak]
            how = f"{_frames(plan.chunk)} in {words_of((*plan.tries, plan.dtype))}"
        else:
            cells = [plan.resident, plan.passing, plan.slots + plan.activations, plan.peak]
            how = "branches together" if plan.is_stacked else "branches in turn"
            how = how if self.has_branches else "-"
        resident, passing, besides, peak = (size_of(cell) for cell in cells)
        where = "" if isinstance(plan, MovqPlan) else _WAITING[plan.waiting]
        return [self.title, resident, passing if cells[1] else "-", where or "-", besides, how, peak]

    def phrase(self) -> str:
        """Return the plan in a few words."""
        plan, notes = self.plan, []
        if isinstance(plan, MovqPlan):
            notes += [plan.changes] if plan.changes else []
            notes += [f"{words_of(plan.tries)} where a first frame is within {LEAST_DB:.1f} dB"] if plan.tries else []
        else:
            if plan.streamed:
                notes.append(f"{size_of(plan.passing)} streamed from {_WAITING[plan.waiting]}")
            if not plan.is_stacked and self.has_branches:
                notes.append("branches in turn")
        return f"{self.title} {size_of(plan.peak)}" + (f" ({', '.join(notes)})" if notes else "")


TITLES = ["stage", "resident", "streamed", "from", "buffers and results", "how", "expected peak"]


def _frames(count: int) -> str:
    return "a frame at a time" if count == 1 else f"chunks of {count}"


def plan_run(
    pipeline: Pipeline, settings: Settings, *, decoder: str | None = None, draws_picture: bool = False
) -> list[StagePlan]:
    """Plan every stage of a run alone, from sizes only.

    Args:
        pipeline: the opened files, with its budget.
        settings: resolved settings.
        decoder: see ``Pipeline.sample``.
        draws_picture: whether release 1.1 draws its own first frame.

    Raises:
        DeviceError: if a stage needs more than the budget; the message names the stage and the least it needs.
    """
    limits = pipeline.networks.limits()
    plans: dict[str, StagePlan] = {}
    for title, stage, what in _work(pipeline, settings, decoder, draws_picture):
        try:
            plan = _plan_of(pipeline, settings, stage, what, limits)
        except DeviceError as error:
            raise DeviceError(f"{title}: {error}") from error
        # Of two runs of one network the one that leaves less of it on the device says how it fares.
        if title not in plans or _tightness(plan) > _tightness(plans[title].plan):
            plans[title] = StagePlan(title, plan, isinstance(what, Batch))
    return list(plans.values())


def _tightness(plan: Plan | MovqPlan) -> tuple[int, int]:
    return getattr(plan, "passing", 0), plan.peak


def _work(
    pipeline: Pipeline, settings: Settings, decoder: str | None, draws_picture: bool
) -> Iterator[tuple[str, str, Batch | MovqNeed | None]]:
    """Yield what runs, in its order: its title, the stage of its network and what that does."""
    release, size, passes = pipeline.release, pipeline.latent_size(settings), LEVELS[settings.fps][0]
    pixels = (settings.height, settings.width)
    yield "text encoder", "text_encoder", None
    if release.reads_image:
        if draws_picture:
            # Twice the size asked for, see ``Pipeline.sample_picture``.
            double = (2 * size[0], 2 * size[1])
            yield "keyframes", "keyframe", Batch(1, 2, 2, double, settings.steps or release.keyframe.steps)
            config = pipeline.models.require("movq")[1].config
            yield "first frame", "movq", decoding_need(config, 1, (2 * pixels[0], 2 * pixels[1]), False)
        stage = pipeline.picture_stage
        yield "first frame", stage, MovqNeed(ENCODE, 1, pixels)
    yield "keyframes", "keyframe", keyframe_batch(settings, release, 1, size)
    frames = settings.keyframes
    if passes:
        gap_stage = pipeline.gap_stage
        gaps = (frames - 1) * 4 ** (passes - 1)
        yield (
            "interpolation",
            gap_stage,
            interpolation_batch(settings, release, 1, gaps, GAP_STAGES[gap_stage][1], size),
        )
        frames = 4 * gaps + 1
    stage = decoder or release.decoder
    config = pipeline.models.require(stage)[1].config
    shares_map = release.shares_map and not settings.is_mended
    yield "decoding", stage, decoding_need(config, frames, pixels, shares_map, bool(settings.narrow_decoder))


def _plan_of(
    pipeline: Pipeline, settings: Settings, stage: str, what: Batch | MovqNeed | None, limits: Budget
) -> Plan | MovqPlan:
    kind, target = pipeline.models.require(stage)[1], pipeline.networks.target(stage)
    if isinstance(what, MovqNeed):
        return pipeline.networks.plan_movq(stage, what, limits)
    contents, networks = pipeline.models.require(stage)[0], pipeline.networks
    packed = frozenset(contents.scales)
    rounds = networks.rounds_file(contents, kind)
    network, blocks = _sizes(kind, kind.config, target, networks.parity, rounds, contents.is_folded, packed)
    if what is None:
        need: Need = text_need(kind.config, 1, target.dtype)
    else:
        need = unet_need(network, what, target, settings.is_stacked)
    return plan_network(blocks, limits, **vars(need))


@lru_cache(maxsize=8)
def _sizes(
    kind: Kind, config: Config, target: Target, parity: Parity, rounds: bool, is_folded: bool, packed: frozenset[str]
) -> tuple[nn.Module, Blocks]:  # fmt: skip
    """Return a network without weights, and what a plan needs to know of it."""
    # Kinds of other sizes are equal: the configuration is there to tell them apart.
    network = bare_network(kind, target=target, parity=parity, is_folded=is_folded, packed=packed)
    if rounds:
        round_weights(network)
    return network, blocks_of(network, target.dtype)
