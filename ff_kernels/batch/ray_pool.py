"""Workers of a Ray cluster: one actor each. Ray places them; what is done, retried and given up is ours to say."""

import os
import socket
from contextlib import suppress
from typing import Any

from ..errors import InputError
from .ledger import Ledger, worker_name
from .work import BROKEN, LOST, EngineFactory, Report, Task, Worker

LOCAL = "local"
# The least that Ray takes is 75 MiB; only records cross it.
_STORE_BYTES = 100 << 20
_NAMESPACE = "fusionframes"
_REACH_SECONDS = 10.0


def connect(address: str, cpus: int) -> Any:
    """Join a Ray cluster and return the module.

    Args:
        address: "local" starts Ray on this machine, "auto" joins the cluster that this machine belongs to, anything
            else is a head node such as "ray://host:10001" or "10.0.0.1:6379".
        cpus: processors that workers will ask for, which a local Ray must have.

    Raises:
        InputError: if Ray is not installed or there is no cluster at the address.
    """
    # Read by Ray when it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f"expected Ray for --ray {address}, found none: pip install 'fusionframes[ray]', or leave --ray out"
        ) from error
    options = {"namespace": _NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        options |= {"address": LOCAL, "num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False}
        options |= {"object_store_memory": _STORE_BYTES}
    else:
        options |= {"address": address}
    try:
        if ":" in address:
            # Where nobody listens Ray would end this process with a page of its own.
            host, _, port = address.rsplit("/", 1)[-1].rpartition(":")
            socket.create_connection((host, int(port)), _REACH_SECONDS).close()
        ray.init(**options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot join Ray at '{address}' ({str(error).splitlines()[0]}): start one with 'ray start --head', or "
            "take --ray local"
        ) from error
    return ray


def count_gpus(ray: Any) -> int:
    """Return the GPUs of a cluster that has been joined."""
    return int(ray.cluster_resources().get("GPU", 0))


class RayPool:
    """A pool of actors; Ray neither restarts them nor tries a task again.

    Args:
        ray: what ``connect`` returned.
        factory: makes the engine inside of the actor, where fusionframes must be installed.
        ledger: knows the workplaces; its folder must be shared by all machines.
        cpus: processors per actor.
        gpus: GPUs per actor.
    """

    def __init__(self, ray: Any, factory: EngineFactory, ledger: Ledger, cpus: int, gpus: float) -> None:
        self._ray, self._factory, self._ledger = ray, factory, ledger
        self._holds = "GPU" if gpus else "processor"
        self._class = ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )(FusionFramesClipWorker)  # fmt: skip
        self._actors: dict[str, Any] = {}
        self._pending: dict[Any, str] = {}
        self._started = 0

    def start(self) -> str:
        """See ``Pool``; an actor that the cluster has no room for yet is ready later."""
        name = worker_name("ray", self._started)
        self._started += 1
        title = f"fusionframes: prompts, then clips, on one {self._holds} ({name})"
        workplace = str(self._ledger.workplace(name).absolute())
        actor = self._class.options(name=title).remote(name, workplace, self._factory)
        self._actors[name] = actor
        self._pending[actor.ready.options(name="open the model").remote()] = name
        return name

    def give(self, worker: str, task: Task) -> None:
        """See ``Pool``."""
        what = f"{task.kind} {task.key}: {task.jobs[0].prompt[:60]}"
        self._pending[self._actors[worker].do.options(name=what).remote(task)] = worker

    def poll(self, seconds: float) -> list[Report]:
        """See ``Pool``."""
        ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=seconds)
        return [self._report(reference, self._pending.pop(reference)) for reference in ready]

    def _report(self, reference: Any, name: str) -> Report:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.ActorDiedError as error:
            # Ray tells of a constructor that raised in the same way as of a process that was killed.
            kind = BROKEN if "creation task" in str(error) else LOST
            return Report(name, kind, _in_short(error, last=kind == BROKEN))
        except errors.RayTaskError as error:
            return Report(name, BROKEN, _in_short(error, last=True))
        except errors.RayError as error:
            return Report(name, LOST, _in_short(error))

    def stop(self, worker: str) -> None:
        """See ``Pool``."""
        actor = self._actors.pop(worker, None)
        self._pending = {reference: name for reference, name in self._pending.items() if name != worker}
        if actor is not None:
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)
        self._ledger.release(worker)

    def close(self) -> None:
        """See ``Pool``."""
        for worker in list(self._actors):
            self.stop(worker)
        self._ray.shutdown()


class FusionFramesClipWorker(Worker):
    """A worker under the name that the Ray dashboard shows."""


def _in_short(error: BaseException, *, last: bool = False) -> str:
    """Return one line of the paragraphs that Ray writes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1 if last else 0] if lines else type(error).__name__)[:200]
