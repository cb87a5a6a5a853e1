"""A decoder that computes in 16 bit: it goes on in a wider range where its own is exceeded, and float32 judges it."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models.configs import MoVQConfig

# So far are frames in 8 bit, as files hold them, from what was rounded (58.9): 16 bit may take no more than that again.
LEAST_DB = 10 * math.log10(12 * 255**2)


class NarrowDecoder:
    """A MoVQ in 16 bit that takes and gives float32.

    Args:
        network_in: gives the MoVQ with its weights in a dtype; what it gave before may be gone then.
        dtype: float16 or bfloat16.
        wide: dtype to go on in where float16 overflows.
    """

    def __init__(self, network_in: Callable[[torch.dtype], nn.Module], dtype: torch.dtype, wide: torch.dtype) -> None:
        self._network_in, self._dtype, self._wide = network_in, dtype, wide
        self._network: nn.Module | None = network_in(dtype)

    @property
    def config(self) -> MoVQConfig:
        """Configuration of the MoVQ."""
        return self._network.config

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which it computes now."""
        return self._dtype

    def decode(self, latents: Tensor, *, shared_map: bool = False) -> Tensor:
        """Return pixels as ``MoVQ.decode``; where float16 overflows, all from there on in a dtype that does not."""
        pixels = self.decode_once(latents, shared_map=shared_map)
        if self._dtype is torch.float16 and not pixels.isfinite().all():
            self._dtype = self._wide
            warnings.warn(f"decoding overflowed in float16 and goes on in {self._dtype}", stacklevel=2)
            # Another network and not this one cast: its owner keeps it for the next clip. Let go of first, for room.
            self._network = None
            self._network = self._network_in(self._dtype)
            return self.decode(latents, shared_map=shared_map)
        return pixels

    def decode_once(self, latents: Tensor, *, shared_map: bool = False) -> Tensor:
        """Return pixels as ``MoVQ.decode``, whatever comes of it."""
        return self._network.decode(latents.to(self._dtype), shared_map=shared_map).float()


@dataclass(frozen=True)
class Judged:
    """What a clip was decoded in.

    Attributes:
        dtype: of the decoder that was taken.
        distances: per 16-bit dtype that was tried, in turn, PSNR in dB to the same frames in float32.
    """

    dtype: torch.dtype
    distances: dict[torch.dtype, float]

    def phrase(self) -> str:
        """Return it in a few words."""
        tried = ", ".join(f"{words_of((dtype,))} is {db:.1f} dB from float32" for dtype, db in self.distances.items())
        return f"decoded in {words_of((self.dtype,))}: on a first frame {tried}"


def choose_decoder(
    network: nn.Module, halves: Iterable[NarrowDecoder], latents: Tensor, *, chunk: int = 1, shared_map: bool = False
) -> tuple[nn.Module | NarrowDecoder, Judged]:
    """Return the first decoder in 16 bit whose frames are ``LEAST_DB`` or nearer to those of float32, else float32's.

    Each clip is judged on its own frames, so that it does not depend on what was decoded before.

    Args:
        network: the MoVQ in float32.
        halves: the same in 16 bit, made when it is its turn.
        latents: ``[T, z, h, w]`` of a clip, judged by its first frame, or first chunk where frames look at each other.
        chunk: frames that run together.
        shared_map: see ``MoVQ.decode``.
    """
    latents = latents[: chunk if network.config.is_video or shared_map else 1]
    expected = network.decode(latents, shared_map=shared_map)
    distances = {}
    for half in halves:
        distances[half.dtype] = _psnr_db(expected, half.decode_once(latents, shared_map=shared_map))
        if distances[half.dtype] >= LEAST_DB:
            return half, Judged(half.dtype, distances)
    return network, Judged(torch.float32, distances)


def _psnr_db(expected: Tensor, pixels: Tensor) -> float:
    """Return the PSNR of pixels around -1..1 as they are shown, 0 where one is not finite."""
    if not pixels.isfinite().all():
        return 0.0
    error = (expected.clamp(-1, 1) - pixels.clamp(-1, 1)).div(2).square().mean().item()
    return -10 * math.log10(error) if error else math.inf


def words_of(dtypes: Iterable[torch.dtype]) -> str:
    """Return dtypes as words, the first choice first."""
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
