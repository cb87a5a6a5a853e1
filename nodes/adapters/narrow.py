"""MoVQ in 16 bit beside the one of a VAE: what latents of a preset that allows it are decoded in."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ...ff_kernels.checkpoints.folding import Target
from ...ff_kernels.checkpoints.loading import cast_tensors
from ...ff_kernels.models.movq import MoVQ
from ...ff_kernels.runtime.devices import quick_dtypes, wide_dtype
from ...ff_kernels.stages.narrow import NarrowDecoder, choose_decoder
from .._compat import ON_DETACH, mm
from .files import Weights
from .folded import fill_folded, make_whole_patcher


class NarrowMoVQ:
    """A MoVQ in one 16-bit dtype at a time, in core's care and gone when core unloads it.

    Args:
        weights: of the MoVQ, as stored.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.patcher: Any = None

    def has(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Return whether the copy is there, in a dtype and for a device."""
        weight = None if self.patcher is None else next(self.patcher.model.parameters())
        return weight is not None and not weight.is_meta and (weight.dtype, self.patcher.load_device) == (dtype, device)

    def choose(
        self, vae: Any, clip: Tensor, *, memory: int, chunk: int, shared_map: bool = False
    ) -> nn.Module | NarrowDecoder:
        """Return what decodes a clip as the command line would, see ``choose_decoder``.

        It is the VAE's own network where nothing is faster than float32 or a card has no room for the copy.

        Args:
            vae: the VAE whose copy this is, loaded.
            clip: ``[T, 4, h, w]`` in float32 on its device.
            memory: bytes that decoding needs beside all weights.
            chunk: frames that run together.
            shared_map: see ``MoVQ.decode``.
        """
        tries = _tries(vae.patcher, memory)
        if not tries:
            return vae.movq

        def network_in(dtype: torch.dtype) -> nn.Module:
            return vae.movq if dtype is torch.float32 else self._load(dtype, vae.patcher, memory)

        halves = (NarrowDecoder(network_in, half, wide_dtype(clip.device, half)) for half in tries)
        decoder, judged = choose_decoder(vae.movq, halves, clip, chunk=chunk, shared_map=shared_map)
        logging.info("FusionFrames: %s", judged.phrase())
        return decoder

    def _load(self, dtype: torch.dtype, wide: Any, memory: int) -> MoVQ:
        if not self.has(dtype, wide.load_device):
            # Let go of first: two copies are never there.
            self.patcher = None
            self.patcher = _make_patcher(self._weights, dtype, wide)
        mm.load_models_gpu([wide, self.patcher], memory_required=memory)
        return self.patcher.model


def _tries(wide: Any, memory: int) -> tuple[torch.dtype, ...]:
    # A card that has no room for half of the weights more stays in float32.
    device, needed = wide.load_device, wide.model_size() * 3 // 2 + memory + mm.extra_reserved_memory()
    return () if device.type != "cpu" and needed > mm.get_total_memory(device) else quick_dtypes(device)


def _make_patcher(weights: Weights, dtype: torch.dtype, wide: Any) -> Any:
    movq = MoVQ(weights.kind.config, device="meta", dtype=dtype)
    # Cast before it is folded, as the command line does.
    fill_folded(movq, cast_tensors(weights.widened(dtype), "cpu", dtype), Target(wide.load_device, dtype))
    patcher = make_whole_patcher(movq, wide.load_device, wide.offload_device)
    patcher.add_callback(ON_DETACH, _forget)
    return patcher


def _forget(patcher: Any, unpatch_all: bool) -> None:
    # Core detaches a model, weights and all, to unload it, and half of it whenever it is loaded again. The patcher
    # itself stays, as core looks at it once more.
    if unpatch_all:
        patcher.model.to("meta")
