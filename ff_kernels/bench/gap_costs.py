"""What filling gaps costs at the released sizes: the interpolation U-Net and the paper's masked-frame baseline.

From 15 keyframes at 2 frames per second, one pass makes 8 and a second 30: 14 gaps and then 56 for either network. The
baseline runs five frames for every gap, two of which are known, and ours one sample.
"""

from dataclasses import dataclass

import torch

from ..models.configs import INTERPOLATION_V10, MASKED, UNetConfig
from ..models.interpolation_unet import InterpolationUNet
from ..models.text_encoder import NULL_TOKENS_V10
from ..models.unets import UNETS
from ..sampling.gaps import frames_after
from ..stages.interpolation import SKIP_FRAMES
from .known_values import KnownValues
from .recorder import Recording, record
from .workloads import make_ready

_META = torch.device("meta")
WORKLOAD = "gaps-2-to-30-fps"
KEYFRAMES, PASSES = 15, 2
NETWORKS = {"ours": INTERPOLATION_V10, "masked": MASKED}
_SHOWN = (
    ("flops", "TFLOP per step", 1e12),
    ("bytes", "GB moved per step", 1e9),
    ("parameters", "10^9 parameters", 1e9),
)


@dataclass(frozen=True)
class GapCost:
    """What one sampling step of every pass needs, both guidance branches, 16 bit, linear layers folded.

    Attributes:
        flops: floating point operations of convolutions and matrix products.
        bytes: read and written.
        parameters: of the network.
    """

    flops: int
    bytes: int
    parameters: int


def count_gaps(size: tuple[int, int] = (64, 64), networks: dict[str, UNetConfig] = NETWORKS) -> dict[str, GapCost]:
    """Count both networks on the same keyframes, both passes together.

    Args:
        size: latent height and width; (64, 64) is 512 x 512 pixels.
        networks: name to sizes; default the released ones.
    """
    gaps = [frames_after(KEYFRAMES, done) - 1 for done in range(PASSES)]
    out = {}
    for name, config in networks.items():
        with torch.no_grad():
            network = UNETS[config.stage](config, device=_META, dtype=torch.float16).eval()
        parameters = sum(p.numel() for p in network.parameters())
        network = make_ready(network)
        runs = [_record_step(network, config, count, skip, size) for count, skip in zip(gaps, SKIP_FRAMES, strict=True)]
        out[name] = GapCost(sum(run.flops for run in runs), sum(run.bytes for run in runs), parameters)
    return out


def _record_step(
    network: InterpolationUNet, config: UNetConfig, gaps: int, skip_frames: int, size: tuple[int, int]
) -> Recording:
    with torch.no_grad(), KnownValues():
        context = torch.zeros(2, NULL_TOKENS_V10, config.context_dim, device=_META, dtype=torch.float16)
        mask = torch.zeros(2, NULL_TOKENS_V10, dtype=torch.long, device=_META)
        mask[:, 0] = 1
        conditions = network.prepare(
            context, mask, torch.tensor([980], device=_META), num_gaps=gaps, skip_frames=skip_frames
        )
    x = torch.empty(conditions.samples, config.num_channels, *size, device=_META, dtype=torch.float16)
    x = x.contiguous(memory_format=torch.channels_last)
    return record(lambda: network(x, conditions, 0), network)


def rows(costs: dict[str, GapCost]) -> list[dict[str, object]]:
    """Return a plain row per figure: the baseline, ours, and ours as a share of it."""
    out = []
    for key, _, _ in _SHOWN:
        masked, ours = (getattr(costs[name], key) for name in ("masked", "ours"))
        out.append({"workload": WORKLOAD, "figure": key, "masked": masked, "ours": ours, "share": ours / masked})
    return out


def table(costs: dict[str, GapCost]) -> list[str]:
    """Return the lines of ``bench --record`` about both networks, and ours as a share of the baseline."""
    lines = [f"{WORKLOAD:28} {'masked':>12} {'ours':>12} {'share':>7}"]
    for (_, title, unit), row in zip(_SHOWN, rows(costs), strict=True):
        lines.append(f"{title:28} {row['masked'] / unit:12.2f} {row['ours'] / unit:12.2f} {row['share']:7.3f}")
    return lines
