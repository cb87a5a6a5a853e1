"""A decoder that computes in 16 bit, and goes on with a wider range where its own is exceeded."""

import warnings

import torch
from torch import Tensor, nn

from ..models.configs import MoVQConfig
from ..runtime.devices import wide_dtype


class NarrowDecoder:
    """A MoVQ in 16 bit that takes and gives float32.

    Args:
        network: the MoVQ, its weights in ``dtype``.
        dtype: float16 or bfloat16.
        device: where it runs.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        self._network, self._dtype, self._device = network, dtype, device

    @property
    def config(self) -> MoVQConfig:
        """Configuration of the MoVQ."""
        return self._network.config

    def decode(self, latents: Tensor, *, shared_map: bool = False) -> Tensor:
        """Return pixels as ``MoVQ.decode``; where float16 overflows, all from there on in a dtype that does not."""
        pixels = self._network.decode(latents.to(self._dtype), shared_map=shared_map)
        if self._dtype is torch.float16 and not pixels.isfinite().all():
            self._dtype = wide_dtype(self._device, self._dtype)
            warnings.warn(f"decoding overflowed in float16 and goes on in {self._dtype}", stacklevel=2)
            self._network = self._network.to(self._dtype)
            return self.decode(latents, shared_map=shared_map)
        return pixels.float()
