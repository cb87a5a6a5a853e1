"""Runs that core's nodes hung something on: what is named as unread, and how our own samplers run inside core's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._compat import APPLY_MODEL, KSAMPLER, PREDICT_NOISE, CFGGuider, warn
from .conditioner import KEY
from .folded import refuse_patched
from .latent import IMAGE_KEYS, MARKED, NO_FIRST_FRAME, Conditioning
from .networks import EngineView, HungRun
from .patches import NOTICE, Notice, unread
from .tables import TABLES

RUN = "fusionframes_run"
OWN_KEYS = {KEY, TABLES, RUN}
# What core reads of a MODEL besides its network, and what the engine's own loop does as well.
OWN_OPTIONS = {"transformer_options", "sampler_post_cfg_function", "disable_cfg1_optimization"}
# Entries of a conditioning that the engine's own loop reads, or that only say what was encoded.
OWN_ENTRIES = {"attention_mask", "pooled_output", MARKED, NO_FIRST_FRAME, *IMAGE_KEYS}
# Core's self-attention guidance blurs pictures: it is written for four axes.
ON_PICTURES = "comfy_extras.nodes_sag"
# What changes the mixing of branches, which the interpolation does by itself.
MIXING = {
    "sampler_cfg_function": "guidance function",
    "sampler_pre_cfg_function": "function before guidance",
    "sampler_post_cfg_function": "function after guidance",
    "sampler_calc_cond_batch_function": "branch function",
    "context_handler": "context windows",
    "model_function_wrapper": "model function wrapper",
    "denoise_mask_function": "denoise mask function",
}


def with_run(executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], *args: Any, **kw: Any) -> Any:
    """Run core's sampler, saying first what nobody reads; a wrapper around ``sampler.sample``."""
    refuse_patched(guider.model_patcher)
    options, notice = extra_args["model_options"], Notice(warn)
    names = unread(options["transformer_options"], guider.conds)
    notice(names + unread_by_stages(options) if isinstance(executor.class_obj, _Stage) else names)
    options["transformer_options"][NOTICE] = notice
    functions = options.get("sampler_post_cfg_function", [])
    if any(function.__module__ == ON_PICTURES for function in functions):
        options["sampler_post_cfg_function"] = [
            on_pictures(function) if function.__module__ == ON_PICTURES else function for function in functions
        ]
    return executor(guider, sigmas, extra_args, *args, **kw)


def unread_by_stages(options: dict[str, Any]) -> list[str]:
    """Name what changes the mixing of guidance branches, which the engine's stages do by themselves."""
    names = [words for key, words in MIXING.items() if options.get(key)]
    for kind in (PREDICT_NOISE, APPLY_MODEL):
        wrappers = options["transformer_options"].get("wrappers", {}).get(kind, {})
        names += [f"{key} (wrapper of {kind})" for key, functions in wrappers.items() if functions]
    return names


def on_pictures(function: Callable[[dict[str, Any]], Tensor]) -> Callable[[dict[str, Any]], Tensor]:
    """Let a function after guidance see the frames ``[B, 4, T, h, w]`` as a batch of pictures ``[B * T, 4, h, w]``."""

    def run(arguments: dict[str, Any]) -> Tensor:
        T = arguments["denoised"].shape[2]
        latents = ("denoised", "cond_denoised", "uncond_denoised", "input")
        folded = {key: as_pictures(arguments[key]) for key in latents}
        # Windows are cut along time, which pictures have none of.
        options = {key: value for key, value in arguments["model_options"].items() if key != "context_handler"}
        model = PictureModel(arguments["model"], T)
        return as_video(function({**arguments, **folded, "model": model, "model_options": options}), T)

    return run


def as_pictures(video: Tensor) -> Tensor:
    """View ``[B, 4, T, h, w]`` as ``[B * T, 4, h, w]``."""
    return video.transpose(1, 2).flatten(0, 1)


def as_video(pictures: Tensor, frames: int) -> Tensor:
    """Undo ``as_pictures``."""
    return pictures.unflatten(0, (-1, frames)).transpose(1, 2)


class PictureModel:
    """A model of core's that is called with pictures and runs on the videos they are frames of."""

    def __init__(self, model: Any, frames: int) -> None:
        self._model, self._frames = model, frames

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def apply_model(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """Predict ``[B * T, 4, h, w]``; conditions were repeated for every picture."""
        video = as_video(x, self._frames)
        cut = {k: v[: len(video)] if isinstance(v, Tensor) else v for k, v in conditions.items()}
        return as_pictures(self._model.apply_model(video, t[: len(video)], **cut))


def is_bare(patcher: Any, *conditionings: Conditioning) -> bool:
    """Return whether nothing hangs on a MODEL and on conditionings but what our own nodes put there."""
    options = patcher.model_options
    inner = options.get("transformer_options", {})
    hung = [inner.get("wrappers", {}), inner.get("callbacks", {}), patcher.wrappers, patcher.callbacks]
    keys = {key for kinds in hung for places in kinds.values() for key, functions in places.items() if functions}
    others = {key for key, value in options.items() if value} - OWN_OPTIONS
    others |= {key for key, value in inner.items() if value} - {"wrappers", "callbacks"}
    functions = options.get("sampler_post_cfg_function", [])
    entries = {key for conditioning in conditionings for _, options in conditioning for key in options}
    return (
        keys <= OWN_KEYS
        and not others
        and all(function.__module__ == __name__.rsplit(".", 1)[0] + ".model" for function in functions)
        and not (patcher.object_patches or patcher.injections or patcher.hook_patches)
        and entries <= OWN_ENTRIES
    )


class _Stage(KSAMPLER):
    """A stage of the engine in the place of a sampler."""

    def __init__(self, run: Callable[[Any, dict[str, Any]], Tensor]) -> None:
        super().__init__(run)
        self.run = run

    def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        """Run the stage with core's options of the run."""
        return self.run(model_wrap, extra_args["model_options"])


def run_in_core(
    patcher: Any, network: EngineView, sigmas: Tensor, shape: list[int], stage: Callable[[], Tensor]
) -> Any:
    """Run a stage of the engine inside core's sampling, so that what hangs on the MODEL runs around the network.

    Args:
        patcher: the MODEL.
        network: its network, which the stage calls.
        sigmas: ``[S + 1]`` noise levels of the stage, in core's units.
        shape: ``[B, C, T, h, w]`` of one branch, for core's estimate of memory.
        stage: the run; what it returns is returned.
    """
    out = []

    def run(guider: Any, options: dict[str, Any]) -> Tensor:
        network.hung = HungRun(guider.inner_model, options, sigmas, clips=shape[0])
        try:
            out.append(stage())
        finally:
            network.hung = None
        return torch.zeros(shape)

    guider = CFGGuider(patcher)
    guider.inner_set_conds({"positive": [], "negative": []})
    zeros = torch.zeros(shape)
    guider.sample(zeros, zeros, _Stage(run), sigmas, disable_pbar=True)
    return out[0]
