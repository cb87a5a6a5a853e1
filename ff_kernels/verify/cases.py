"""What a reference case is made of: weights and noise are functions of key, shape and seed, so that little is stored.

The format is written down in README.md beside this file.
"""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.folding import Parity, fold
from ..errors import InputError

# Where errors send a reader; it is installed with the package.
FORMAT = Path(__file__).with_name("README.md")
_MERGES = ("temporal_merge", "time_embed_merge", "skip_merge", "time_embed_context_merge")


class TapeNoise:
    """Noise of a case: draw n of a kind is a function of the kind, n and the tape's seed."""

    def __init__(self, seed: int) -> None:
        self.seed, self.count = seed, 0

    def _stream(self, kind: str) -> np.random.RandomState:
        name = f"{kind}.{self.count}"
        self.count += 1
        return np.random.RandomState((zlib.crc32(name.encode()) + self.seed) % 2**32)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Return the next standard normal tensor."""
        return torch.from_numpy(self._stream("randn").standard_normal(tuple(shape)).astype(np.float32))

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Return the next uniform 0..1 tensor."""
        return torch.from_numpy(self._stream("rand").random_sample(tuple(shape)).astype(np.float32))


def case_weight(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the weight of a case: a function of its key, its shape and the case's seed."""
    stream = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    x = stream.standard_normal(shape).astype(np.float32)
    last = key.rsplit(".", 1)[-1]
    if len(shape) >= 2:
        x = x / math.sqrt(math.prod(shape[1:]))
    elif last.startswith(_MERGES):
        x = 0.5 + 0.2 * x
    elif key.endswith("weight"):
        x = 1 + 0.1 * x
    else:
        x = 0.1 * x
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def fill_weights(network: nn.Module, seed: int, listed: dict[str, list[int]] | None = None) -> nn.Module:
    """Load a network with case weights, by the case's own list of keys where it has one.

    Raises:
        InputError: if the network does not have exactly the listed keys and shapes.
    """
    own = {k: list(v.shape) for k, v in network.state_dict().items()}
    if listed is not None and own != listed:
        odd = sorted(k for k in own.keys() | listed.keys() if own.get(k) != listed.get(k))
        raise InputError(
            f"expected the case's {len(listed)} keys, got {len(own)} with '{odd[0]}' the first to differ: "
            "the configuration and the key list of the case disagree"
        )
    network.load_state_dict({k: case_weight(k, tuple(s), seed) for k, s in (listed or own).items()})
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class How:
    """Of which release a case is, and whether its networks run as released or folded."""

    family: str
    parity: Parity = "strict"

    def ready(self, network: nn.Module, case: dict[str, Any], listed: dict[str, list[int]] | None) -> nn.Module:
        """Give a network the weights of a case, and fold it on the fast path."""
        fill_weights(network, case["seed"], listed)
        return fold(network) if self.parity == "fast" else network
