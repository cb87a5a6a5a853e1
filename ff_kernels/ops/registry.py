"""Which implementation serves an operation: one torch op each, constraints as data, refusals in words.

An operation is declared once (``Operation``) with its schema, its shape rule, its cost and its formula, which is the
specification and runs anywhere. Other implementations register beside it with the constraints under which they may
be asked. ``FUSIONFRAMES_BACKEND`` or ``use_backend`` force one; a forced one that cannot run is an error, never a
silent fallback.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import NoBackendError

# In the order of preference; "eager" is the formula itself and always last.
BACKENDS = ("triton", "cpu", "eager")
# Types of device that have kernels; every other one runs the formulas. On a CPU Triton means its interpreter, which is
# for tests and has to be asked for.
DEVICE_KERNELS = {"cuda": ("triton",), "cpu": ("cpu",)}
VARIABLE = "FUSIONFRAMES_BACKEND"


@dataclass(frozen=True)
class Cost:
    """What one call costs at best: kernel launches, floating-point operations, bytes read and written."""

    launches: int
    flops: int
    bytes: int


@dataclass(frozen=True)
class Constraint:
    """A condition of an implementation: a sentence for people and a test of the call's arguments."""

    says: str
    holds: Callable[..., bool]


@dataclass(frozen=True)
class Implementation:
    """A function that computes an operation where its constraints hold."""

    backend: str
    function: Callable[..., Any]
    constraints: tuple[Constraint, ...] = ()

    def refusals(self, args: tuple[Any, ...]) -> list[str]:
        """Return what this implementation would need and these arguments do not give."""
        return [constraint.says for constraint in self.constraints if not constraint.holds(*args)]


@dataclass
class Operation:
    """One public operation.

    Attributes:
        name: name of the torch op.
        schema: its arguments and result in torch's schema language.
        fake: result for tensors without data: shapes, dtypes and strides only.
        cost: what a call costs; takes the call's arguments and its result.
        formula: the specification: plain torch, any device and floating-point dtype, differentiable.
    """

    name: str
    schema: str
    fake: Callable[..., Any]
    cost: Callable[..., Cost]
    formula: Callable[..., Any]
    implementations: dict[str, Implementation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Declare the torch op; the package may be imported twice under two names, each with its own ops."""
        self.implementations["eager"] = Implementation("eager", self.formula)
        _library.define(f"{self.name}{self.schema}")
        # One kernel for every device there is, and still one op for tracers: nothing is decomposed before it is seen.
        _library.impl(self.name, self._dispatch, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{self.name}", self.fake, lib=_library)
        self._op = getattr(getattr(torch.ops, NAMESPACE), self.name).default
        OPERATIONS[self.name] = self

    def __call__(self, *args: Any) -> Any:
        """Run the torch op, or the formula where a gradient is wanted: the kernels are for inference."""
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return self.formula(*args)
        return self._op(*args)

    def _dispatch(self, *args: Any) -> Any:
        return choose(self, args).function(*args)


_HOME = __name__.rpartition(".ff_kernels.")[0] or __name__


def _namespace() -> str:
    name = _HOME if _HOME == "fusionframes" else f"fusionframes_{hashlib.sha256(_HOME.encode()).hexdigest()[:8]}"
    # A module that is executed again under its old name (a reload) finds its ops taken; torch keeps those for good.
    again = 0
    while hasattr(getattr(torch.ops, f"{name}_{again}" if again else name), "group_norm_mod"):
        again += 1
    return f"{name}_{again}" if again else name


NAMESPACE = _namespace()
_library = torch.library.Library(NAMESPACE, "FRAGMENT")
OPERATIONS: dict[str, Operation] = {}
_forced: ContextVar[str | None] = ContextVar("forced_backend", default=None)


def implements(operation: Operation, backend: str, *constraints: Constraint) -> Callable[[Callable], Callable]:
    """Register the decorated function as the implementation of ``operation`` by ``backend``."""

    def register(function: Callable) -> Callable:
        operation.implementations[backend] = Implementation(backend, function, constraints)
        return function

    return register


@contextlib.contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Force one backend inside the block; None gives the choice back.

    Raises:
        NoBackendError: if there is no backend of this name.
    """
    token = _forced.set(_known(backend, "use_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def _known(backend: str | None, source: str) -> str | None:
    if backend is not None and backend not in BACKENDS:
        raise NoBackendError(f"{source} expected one of {', '.join(BACKENDS)}, got {backend!r}: choose one of them")
    return backend


def forced_backend() -> str | None:
    """Return the backend that the block or the environment forces, or None."""
    return _forced.get() or _known(os.environ.get(VARIABLE) or None, VARIABLE)


def is_interpreting() -> bool:
    """Return whether Triton kernels run in its interpreter, which needs no GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable(backend: str) -> str | None:
    """Return why a backend cannot run on this machine at all, or None."""
    return _why_no_triton(is_interpreting()) if backend == "triton" else None


@lru_cache(maxsize=2)
def _why_no_triton(interpreting: bool) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None if interpreting else importlib.import_module(f"{__package__}.triton").missing_device()


def backends_of(device_type: str) -> tuple[str, ...]:
    """Return the backends that a call on this type of device may reach unasked, in the order of preference."""
    return (*DEVICE_KERNELS.get(device_type, ()), "eager")


def _find(operation: Operation, backend: str) -> Implementation | None:
    """Return the implementation by a backend that can run here, None where it has none.

    Kernels are imported when they are first asked for: Triton is slow to import.
    """
    if backend == "triton":
        importlib.import_module(f"{__package__}.triton")
    return operation.implementations.get(backend)


def refusals(operation: Operation, backend: str, args: tuple[Any, ...]) -> list[str]:
    """Return why ``backend`` would not run ``operation`` on these arguments; empty if it would or has no kernel."""
    reason = unavailable(backend)
    if reason is not None:
        return [reason]
    implementation = _find(operation, backend)
    return [] if implementation is None else implementation.refusals(args)


def choose(operation: Operation, args: tuple[Any, ...]) -> Implementation:
    """Return the implementation for these arguments.

    Raises:
        NoBackendError: if a backend is forced and refuses; the message says why.
    """
    forced = forced_backend()
    if forced is not None:
        why = refusals(operation, forced, args)
        if why:
            raise NoBackendError(
                f"{operation.name} was told to use the backend {forced!r}, which needs: {'; '.join(why)}: "
                f"take {VARIABLE} or use_backend away, or meet that"
            )
        # An operation that a backend does not have is computed by its formula: forcing is about the kernels.
        return operation.implementations.get(forced, operation.implementations["eager"])
    for backend in backends_of(args[0].device.type):
        if not refusals(operation, backend, args) and backend in operation.implementations:
            return operation.implementations[backend]
    raise NoBackendError(f"{operation.name} found no implementation: report this, the formula should always run")


def cost_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Cost | None:
    """Return what a call of one of our torch ops costs, or None for an op that is not ours."""
    namespace, _, name = func.name().partition("::")
    operation = OPERATIONS.get(name.partition(".")[0])
    return None if namespace != NAMESPACE or operation is None else operation.cost(*args, out=out, **kwargs)


def describe_backends() -> list[tuple[str, str, str]]:
    """Return ``(operation, backend, state)`` for every operation: what each backend needs, or why it cannot run."""
    rows = []
    for operation in OPERATIONS.values():
        for backend in BACKENDS:
            reason = unavailable(backend)
            implementation = None if reason is not None else _find(operation, backend)
            if reason is not None:
                state = f"cannot run: {reason}"
            elif implementation is None:
                state = "has none"
            else:
                needs = "; ".join(constraint.says for constraint in implementation.constraints)
                state = f"serves calls where {needs}" if needs else "serves every call"
            rows.append((operation.name, backend, state))
    return rows


def bytes_of(*tensors: Tensor | None) -> int:
    """Return the bytes that reading or writing these tensors once moves."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
