"""Tables of a run in core's samplers: made at its first step for all of them, gone with the run."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...ff_kernels.models.conditions import Conditions
from ...ff_kernels.sampling.schedule import TRAIN_STEPS, make_schedule_v10

# Name of the wrapper, and of the tables among core's transformer options, which exist once per run.
TABLES = "fusionframes_tables"

Inputs = tuple[Tensor | int | None, ...]


class RunTables:
    """What the network is told in one run, worked out once per conditioning.

    Args:
        timesteps: ``[S]`` what the network will be told, step by step.
        sigmas: ``[S]`` at these noise levels of core's, where core itself would tell it something else.
    """

    def __init__(self, timesteps: Tensor, sigmas: Tensor | None = None) -> None:
        pairs = () if sigmas is None else zip(sigmas.tolist(), timesteps.tolist(), strict=True)
        self._times = dict(pairs)
        told = list(dict.fromkeys(timesteps.tolist()))
        self._timesteps = timesteps.new_tensor(told)
        self._places = {value: i for i, value in enumerate(told)}
        self._made: list[tuple[Inputs, Conditions]] = []

    def tell(self, timesteps: Tensor, sigmas: Tensor | None) -> Tensor:
        """Return ``[B]`` timesteps to tell the network at ``sigmas`` ``[B]``, ``timesteps`` being core's."""
        time = self._times.get(float(sigmas[0])) if self._times and sigmas is not None else None
        return timesteps if time is None else torch.full_like(timesteps, time)

    def find(
        self, timesteps: Tensor, inputs: Inputs, prepare: Callable[[Tensor], Conditions]
    ) -> tuple[Conditions, int]:
        """Return conditions and the place of a step in them.

        Args:
            timesteps: ``[B]`` of this call; samplers with steps between the steps tell others than announced, and
                those are worked out alone.
            inputs: all that the conditions depend on besides; compared by value, as core makes them anew every step.
            prepare: of ``[S]`` or ``[1, B]`` timesteps.
        """
        told = timesteps.tolist()
        place = self._places.get(told[0])
        if place is None or len(set(told)) > 1:
            return prepare(timesteps[None]), 0
        for known, conditions in self._made:
            if len(known) == len(inputs) and all(map(_is_same, known, inputs)):
                return conditions, place
        conditions = prepare(self._timesteps)
        self._made.append((inputs, conditions))
        return conditions, place


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        return same and torch.equal(one, other)
    return one is other or (type(one) is type(other) is int and one == other)


def with_tables(executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], *args: Any, **kw: Any) -> Any:
    """Run core's sampler with tables; a wrapper around ``sampler.sample``.

    Hooks may change the weights between steps, so a run with any works its conditions out anew every step.
    """
    options = extra_args["model_options"]
    if "registered_hooks" not in options:
        released = released_timesteps(guider.inner_model.network_config.family, sigmas)
        timesteps = guider.inner_model.model_sampling.timestep(sigmas[:-1]).float() if released is None else released
        options["transformer_options"][TABLES] = RunTables(timesteps, None if released is None else sigmas[:-1])
    return executor(guider, sigmas, extra_args, *args, **kw)


def released_timesteps(family: str, sigmas: Tensor) -> Tensor | None:
    """Return what release 1.0 tells its network in its own run of as many steps, None for other levels or releases.

    Release 1.0 spreads the betas of 1000 steps anew for every number of steps, so that a noise level alone does not
    say the timestep: at other than 50 steps core would look it up in the table of 50.
    """
    if family != "1.0" or not 1 < len(sigmas) <= TRAIN_STEPS + 1:
        return None
    schedule = make_schedule_v10(len(sigmas) - 1)
    own = torch.equal(schedule.sigmas.float(), sigmas.float().cpu())
    return schedule.timesteps.to(sigmas) if own else None
