"""Run reference cases (numbers of the authors' code) through the engine and report every tensor's error.

A case is ``NAME.json`` (configuration, seeds, tapes) beside ``NAME.safetensors`` (inputs and expected outputs), see
README.md in this folder.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoints.folding import Parity
from ..errors import FusionFramesError, InputError
from . import checks
from .cases import FORMAT, How


@dataclass(frozen=True)
class Check:
    """One compared tensor: relative L2 error ``||out - expected|| / ||expected||`` against its limit.

    ``problem`` says in a sentence why a case could not be run; it has no tensor then.
    """

    case: str
    tensor: str
    error: float
    limit: float
    parity: Parity = "strict"
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the error is finite and within the limit."""
        return self.error <= self.limit


def relative_error(out: Tensor, expected: Tensor) -> float:
    """Return ``||out - expected|| / ||expected||``; infinite where shapes differ or a value is not finite."""
    if out.shape != expected.shape:
        return math.inf
    out, expected = out.cpu().double(), expected.cpu().double()
    scale = expected.norm().item() or 1.0
    error = (out - expected).norm().item() / scale
    return error if math.isfinite(error) else math.inf


def _kind(case: dict[str, Any], t: dict[str, Tensor], name: str) -> tuple[Callable[..., checks.Outputs], str]:
    """Find out from its content what a case checks, and of which release."""
    keys = case.get("state_dict", {})
    if "tapes" in case or "tape_seed" in case:
        is_v11 = "image_latent" in t or "guidance_weight_prompt" in case
        return (checks.check_pipeline_v11, "1.1") if is_v11 else (checks.check_pipeline_v10, "1.0")
    if "input_ids" in t:
        return checks.check_text, "1.0"
    if "betas" in t:
        return checks.check_schedule, "1.0"
    if "z_channels" in case.get("config", {}):
        # An image MoVQ of 1.1 that names no part over time is told from one of 1.0 by its name alone.
        names_time = any(key.startswith("temporal") or key == "build_3D_decoder" for key in case["config"])
        return checks.check_movq, "1.1" if names_time or name.startswith("v11") else "1.0"
    if "skip_frames" in t:
        is_v11 = any("temporal_projection_new" in key for key in keys)
        return checks.check_interpolation_unet, "1.1" if is_v11 else "1.0"
    if "x" in t and keys:
        return checks.check_keyframe_unet, "1.1" if "image_in_layer.weight" in keys else "1.0"
    raise InputError(
        "expected a case of a U-Net, MoVQ, text encoder, schedule or pipeline, got none of these: "
        f"see the format in '{FORMAT}'"
    )


def _expected(case: dict[str, Any], t: dict[str, Tensor]) -> set[str]:
    """Return the tensors of a case that are results; the rest are its inputs."""
    results = {
        "out", "image_out", "latent", "decoded", "last_hidden_state", "frames", "image_latent", "keyframes",
        "keyframes_plain", "keyframes_negative", "video_medium", "video_high",
    }  # fmt: skip
    if "input_ids" in t:
        results |= {"context", "context_mask"}
    if "betas" in t:
        results |= set(t)
    return {name for name in t if name in results or name.endswith(("_timesteps", "_alphas_cumprod"))}


@torch.inference_mode()
def verify_case(path: Path, parity: Parity = "strict") -> list[Check]:
    """Run one case (its ``.json`` file) and compare every result it lists.

    Args:
        path: the ``.json`` file.
        parity: "strict" runs the networks as released, "fast" folded; cases in which nothing folds have no fast path
            and give no check for it.

    Raises:
        InputError: if the case cannot be read, does not hold what its kind needs, or names no result.
    """
    name = path.stem
    try:
        case = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(path.with_suffix(".safetensors"))
        check, family = _kind(case, tensors, name)
        expected = sorted(_expected(case, tensors))
        if not expected:
            raise InputError(f"expected a result to compare, got the tensors {', '.join(sorted(tensors))}: add one")
        if parity == "fast" and check in (checks.check_text, checks.check_schedule):
            return []
        outputs = check(case, tensors, How(family, parity))
    except FusionFramesError as error:
        raise InputError(f"case {name}: {error}") from error
    # Whatever a network or a reader raises here, it raises over what the case holds.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
            SafetensorError) as error:  # fmt: skip
        raise InputError(
            f"expected a reference case that runs in '{path}', got {type(error).__name__}: {_first_line(error)}: see "
            f"the format in '{FORMAT}'"
        ) from error
    return [
        Check(name, key, relative_error(outputs[key][0], tensors[key]), outputs[key][1], parity)
        if key in outputs else Check(name, key, math.inf, 0.0, parity)
        for key in expected
    ]  # fmt: skip


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no reason given")


def find_cases(folder: Path) -> list[Path]:
    """Return the ``.json`` files of all cases in a folder, sorted, a case whose tensors are missing included.

    Other descriptions, such as manifests, have neither tensors beside them nor a seed or steps.

    Raises:
        InputError: if the folder holds no case.
    """
    cases = sorted(p for p in folder.glob("*.json") if p.with_suffix(".safetensors").exists() or _describes_case(p))
    if not cases:
        raise InputError(
            f"expected reference cases (NAME.json beside NAME.safetensors) in '{folder}', got none: "
            f"see the format in '{FORMAT}'"
        )
    return cases


def _describes_case(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and not content.keys().isdisjoint({"seed", "tape_seed", "steps"})


def verify(folder: Path) -> Iterator[Check]:
    """Run every case of a folder on the strict and on the fast path, yielding each compared tensor.

    A case that cannot be run yields one check that fails and says why, and the next one follows.
    """
    for path in find_cases(folder):
        for parity in get_args(Parity):
            try:
                yield from verify_case(path, parity)
            except InputError as error:
                yield Check(path.stem, "-", math.inf, 0.0, parity, str(error))
                break
