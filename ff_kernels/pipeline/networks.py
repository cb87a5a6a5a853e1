"""The networks of a folder of weights: opened when a stage needs one, put on the device by a plan, kept or freed.

Weights wait in their files, which are mapped, until a plan says where they go (``runtime.plan``): nothing is there
twice.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..checkpoints.detection import NULL_KEY, Kind, split_tensors
from ..checkpoints.folder import ModelFiles
from ..checkpoints.folding import Parity, Target, require_parity
from ..checkpoints.loading import Loaded, load_as_stored, load_contents, load_projection
from ..checkpoints.pages import keep_all, let_go_of
from ..checkpoints.reading import Contents
from ..errors import CheckpointError, DeviceError
from ..ops.rounding import Report, round_weights
from ..runtime.budget import without_reserve
from ..runtime.devices import free_bytes, wide_dtype
from ..runtime.host import KEPT_FREE, Pins, free_ram, pins_for
from ..runtime.placing import SourceOf, blocks_of, place
from ..runtime.plan import Blocks, Budget, Plan, plan_network
from ..stages.narrow import Judged
from .needs import MovqNeed, MovqPlan, Need, movq_values, plan_movq

P = TypeVar("P")


@dataclass
class Placed:
    """A network and where its weights are.

    Attributes:
        network: runs while ``running`` is entered.
        plan: where its weights are.
        running: brings what passes through.
    """

    network: nn.Module
    plan: Plan
    running: AbstractContextManager


@dataclass
class _Held:
    kind: Kind
    network: nn.Module
    dtype: torch.dtype
    blocks: Blocks | None = None
    source_of: SourceOf | None = None
    placed: Placed | None = None
    nbytes: int = 0
    narrow: tuple[torch.dtype, nn.Module] | None = None


class Networks:
    """Opened files of a folder by stage (``Kind.stage``).

    Args:
        models: the files, see ``find_models``.
        device: where networks run.
        dtype: dtype of the U-Nets.
        parity: "strict" or "fast", see ``Pipeline``.
        keeps_all: keep every network that was loaded where there is room; False frees them before the next one is.
        budget: what they may use; a None in it is what is free at the time.
        rounds: keep weights of U-Nets in 8 bit (``ops.rounding``).
    """

    def __init__(
        self, models: ModelFiles, device: torch.device, dtype: torch.dtype, parity: Parity, *, keeps_all: bool,
        budget: Budget | None = None, rounds: bool = False,
    ) -> None:  # fmt: skip
        require_parity(parity)
        self.models, self.device, self.dtype, self.parity, self.keeps_all = models, device, dtype, parity, keeps_all
        self.budget, self.rounds = budget or Budget(), rounds
        self.reports: dict[str, Report | Judged] = {}
        self.loaded: dict[str, _Held] = {}
        self._pins: Pins | None = None

    def get(self, stage: str) -> Loaded:
        """Return the file of a stage, loading it the first time; a U-Net or text encoder runs inside of ``placed``."""
        held = self._open_movq(stage, torch.float32) if "movq" in stage else self._open(stage)
        return Loaded(held.kind, held.network, self._null(stage), None)

    def dtype_of(self, stage: str) -> torch.dtype:
        """Return the dtype that a stage computes in: float16 overflows in a text encoder of Flan-UL2's size."""
        if "movq" in stage:
            return torch.float32
        return wide_dtype(self.device, self.dtype) if stage in ("text_encoder", "projection") else self.dtype

    def target(self, stage: str) -> Target:
        """Return where and in which dtype a stage computes."""
        return Target(self.device, self.dtype_of(stage), is_portable=self.rounds)

    def rounds_file(self, contents: Contents, kind: Kind) -> bool:
        """Return whether weights of a file are rounded to 8 bit when it is loaded.

        A text encoder is left: in 8 bit it costs the demo one of 64 held-out captions, and memory it takes for moments.
        """
        return self.rounds and kind.stage != "text_encoder" and not contents.scales and not contents.packed

    def free(self, but: str | None = None) -> None:
        """Forget the networks of all stages but one."""
        self.loaded = {stage: held for stage, held in self.loaded.items() if stage == but}

    def limits(self) -> Budget:
        """Return the budget with what is free in place of a None, its reserve taken off."""
        vram, ram = self.budget.vram, self.budget.ram
        if vram is None:
            free = free_bytes(self.device)
            vram = None if free is None else free + sum(held.nbytes for held in self.loaded.values())
        if ram is None:
            free = free_ram()
            pinned = self._pins.used if self._pins is not None else 0
            ram = None if free is None else max(0, free + pinned - KEPT_FREE)
        if vram is None:
            return replace(self.budget, ram=ram)
        room = without_reserve(vram)
        return replace(self.budget, vram=room, ram=ram, reserve=vram - room)

    def placed(self, stage: str, need: Callable[[nn.Module], Need]) -> Placed:
        """Return the network of a stage, its weights where the plan for what it needs wants them.

        Args:
            stage: a U-Net or the text encoder.
            need: what its run needs beside its weights.

        Raises:
            DeviceError: if the budget is below the smallest plan.
        """
        held = self._open(stage)
        needed = need(held.network)

        def plan_in(limits: Budget) -> Plan:
            return plan_network(held.blocks, limits, **vars(needed))

        plan = self._best(stage, plan_in, lambda plan: not plan.streamed and plan.is_stacked == needed.may_stack)
        if held.placed is not None and _is_elsewhere(plan, held.placed.plan):
            del self.loaded[stage]
            held = self._open(stage)
        if held.placed is None:
            if plan.waiting == "memory":
                self._pins = self._pins or pins_for(self.device)
            hold = self._pins.hold if self._pins is not None else None
            running = place(held.network, plan, self.device, held.dtype, source_of=held.source_of, hold=hold)
            held.placed, held.source_of = Placed(held.network, plan, running), None
            if plan.waiting == "file":
                contents = self.models.require(stage)[0]
                let_go_of(contents)(contents.tensors.values())
        held.placed.plan, held.nbytes = plan, plan.resident
        return held.placed

    def plan_movq(self, stage: str, need: MovqNeed, limits: Budget) -> MovqPlan:
        """Return the plan for what a MoVQ does in ``limits``; nothing is loaded.

        Raises:
            DeviceError: if they are below the smallest plan.
        """
        contents, kind = self.models.require(stage)
        values = movq_values(kind.config, self.parity, contents.is_folded)
        return plan_movq(kind.config, need, limits, self.device, self.dtype, values)

    def movq(self, stage: str, need: MovqNeed) -> tuple[nn.Module, MovqPlan]:
        """Return a MoVQ on the device, in the dtype of the plan for what it does.

        Raises:
            DeviceError: if the budget is below the smallest plan.
        """

        def plan_in(limits: Budget) -> MovqPlan:
            return self.plan_movq(stage, need, limits)

        plan = self._best(stage, plan_in, lambda plan: plan.is_as_released)
        held = self._open_movq(stage, plan.dtype)
        held.nbytes = plan.weights
        return held.network, plan

    def movq_in(self, stage: str, dtype: torch.dtype) -> nn.Module:
        """Return a loaded MoVQ in a dtype: beside the one in float32, which stays, or in place of one in 16 bit."""
        held = self.loaded[stage]
        if held.dtype is not torch.float32 or dtype is torch.float32:
            return self._open_movq(stage, dtype).network
        if held.narrow is None or held.narrow[0] is not dtype:
            held.narrow = None
            held.narrow = dtype, self._load_movq(stage, dtype).network
        return held.narrow[1]

    def projection(self) -> nn.Module:
        """Return the projection of text: a file of its own or, release 1.0, part of the keyframe file."""
        stage = "projection" if "projection" in self.models.files else "keyframe"
        # Without the U-Net beside it, of which encoding needs nothing else.
        contents = self.models.require(stage)[0]
        projection = load_projection(contents, self.device, self.dtype_of("text_encoder"))
        if projection is None:
            self.models.require("projection")
        return projection

    def null_embedding(self, stage: str) -> Tensor:
        """Return the learned empty text that a stage's file holds.

        Raises:
            CheckpointError: if it holds none.
        """
        null_embedding = self._null(stage)
        if null_embedding is None:
            raise CheckpointError(
                f"expected a null embedding in the {stage} file of '{self.models.folder}', found none: convert the "
                "authors' file, which holds one"
            )
        return null_embedding

    def _null(self, stage: str) -> Tensor | None:
        stored = split_tensors(self.models.require(stage)[0])[1].get(NULL_KEY)
        return None if stored is None else stored.reshape(-1).to(device=self.device, dtype=self.dtype)

    def _best(self, stage: str, plan_in: Callable[[Budget], P], is_best: Callable[[P], bool]) -> P:
        """Plan beside the networks that are there; where that is less than the best, free them and plan alone."""
        limits = self.limits()
        others = sum(held.nbytes for name, held in self.loaded.items() if name != stage)
        if limits.vram is not None and others:
            try:
                plan = plan_in(replace(limits, vram=limits.vram - others))
            except DeviceError:
                plan = None
            if plan is not None and is_best(plan):
                return plan
            self.free(but=stage)
        return plan_in(limits)

    def _make_room(self, stage: str) -> None:
        if not self.keeps_all:
            self.free(but=stage)

    def _open(self, stage: str) -> _Held:
        self._make_room(stage)
        if stage not in self.loaded:
            contents, kind = self.models.require(stage)
            target = self.target(stage)
            done = let_go_of(contents) if self._is_short_of(contents) else keep_all
            network, source_of = load_as_stored(contents, kind, target=target, parity=self.parity, done=done)
            if self.rounds_file(contents, kind):
                self.reports[stage] = round_weights(network)
                done(contents.tensors.values())
            self.loaded[stage] = _Held(kind, network, target.dtype, blocks_of(network, target.dtype), source_of)
        return self.loaded[stage]

    def _is_short_of(self, contents: Contents) -> bool:
        """Return whether main memory has no room for a whole file."""
        limits = self.limits()
        size = sum(tensor.nbytes for tensor in contents.tensors.values())
        return limits.is_smallest or (limits.ram is not None and size > limits.ram)

    def _open_movq(self, stage: str, dtype: torch.dtype) -> _Held:
        self._make_room(stage)
        if stage in self.loaded and self.loaded[stage].dtype != dtype:
            del self.loaded[stage]
        if stage not in self.loaded:
            loaded = self._load_movq(stage, dtype)
            nbytes = sum(value.nbytes for value in loaded.network.parameters())
            self.loaded[stage] = _Held(loaded.kind, loaded.network, dtype, nbytes=nbytes)
        return self.loaded[stage]

    def _load_movq(self, stage: str, dtype: torch.dtype) -> Loaded:
        contents, kind = self.models.require(stage)
        return load_contents(contents, kind, stage=stage, device=self.device, dtype=dtype, parity=self.parity)


def _is_elsewhere(plan: Plan, other: Plan) -> bool:
    return (plan.streamed, plan.waiting) != (other.streamed, other.waiting)
