"""Named workloads: which network, which sizes, which inputs, and how each side is made ready and called.

A U-Net workload is one sampling step: one forward of both guidance branches. A decode workload is one clip of five
frames. Text is 33 tokens (32 and the zero behind them) in release 1.0's layout.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..checkpoints.folding import fold
from ..models.conditions import Conditions
from ..models.configs import INTERPOLATION_V10, KEYFRAME_V10, MOVQ, MoVQConfig, UNetConfig
from ..models.keyframe_unet import keyframe_positions
from ..models.movq import MoVQ
from ..models.text_encoder import NULL_TOKENS_V10
from ..models.unets import UNETS
from ..stages.decoding import decode
from ..stages.interpolation import SKIP_FRAMES
from ..stages.run import StepRecorder, Text, step_function
from .precision import PLAIN, Precision
from .released_movq import decode_frames
from .released_unet import Texts, interpolation_step, keyframe_step

SEED = 20231113
STEPS = 50
TOKENS = 33
_MERGES = ("temporal_merge", "time_embed_merge", "skip_merge")


@dataclass(frozen=True)
class Workload:
    """What one line of the benchmark measures.

    Attributes:
        name: as given on the command line.
        stage: "keyframes", "interpolation" or "decode".
        config: sizes of the network.
        frames: keyframes, gaps or decoded frames.
        size: latent height and width.
        is_full_size: the released sizes in float16, for CUDA devices; otherwise small sizes in float32.
    """

    name: str
    stage: str
    config: UNetConfig | MoVQConfig
    frames: int
    size: tuple[int, int]
    is_full_size: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights on both sides."""
        return torch.float16 if self.is_full_size else torch.float32

    @property
    def unit(self) -> str:
        """What the seconds are the seconds of."""
        height, width = self.size
        return {
            "keyframes": f"one step, both branches of {self.frames} keyframes of {height}x{width} latents",
            "interpolation": f"one step, both branches of {self.frames} gaps of {height}x{width} latents",
            "decode": f"decoding {self.frames} frames of {height}x{width} latents",
        }[self.stage]


def _small(config: UNetConfig) -> UNetConfig:
    return replace(config, model_channels=128, init_channels=64, time_embed_dim=512, context_dim=1024)


def _workloads() -> dict[str, Workload]:
    small = [
        Workload("keyframes-cpu", "keyframes", _small(KEYFRAME_V10), 15, (32, 32)),
        Workload("interpolation-cpu", "interpolation", _small(INTERPOLATION_V10), 14, (32, 32)),
        Workload("decode-cpu", "decode", replace(MOVQ, ch=128), 5, (32, 32)),
    ]
    full = [
        Workload(f"{stage}-{label}", stage, config, frames, size, is_full_size=True)
        for label, size in (("512", (64, 64)), ("640x384", (48, 80)))
        for stage, config, frames in (
            ("keyframes", KEYFRAME_V10, 15),
            ("interpolation", INTERPOLATION_V10, 14),
            ("decode", MOVQ, 5),
        )
    ]
    return {workload.name: workload for workload in (*small, *full)}


WORKLOADS = _workloads()


@torch.no_grad()
def make_network(workload: Workload, device: torch.device) -> nn.Module:
    """Build the network with random weights that keep the scale of activations; the same for the same workload."""
    # Released weights keep requires_grad, which decides how torch multiplies views: the reference keeps it too.
    network_class = UNETS[workload.config.stage] if isinstance(workload.config, UNetConfig) else MoVQ
    network = network_class(workload.config, device=device, dtype=workload.dtype).eval()
    if device.type == "meta":
        return network
    generator = torch.Generator(device).manual_seed(SEED)
    for name, weight in network.named_parameters():
        weight.normal_(generator=generator)
        if weight.ndim > 1:
            weight.mul_(weight[0].numel() ** -0.5)
        elif name.rsplit(".", 1)[-1].startswith(_MERGES):
            weight.mul_(0.2).add_(0.5)
        else:
            weight.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)
    return network


def make_ready(network: nn.Module) -> nn.Module:
    """Do to our network what loading does after the weights are in place; the reference never passes here."""
    return fold(network)


@dataclass(frozen=True)
class Inputs:
    """What both sides read.

    Attributes:
        x: latents ``[frames, C, h, w]``: noisy, or to be decoded.
        ends: left and right keyframes of every gap ``[G, 4, h, w]``; interpolation only.
        context: ``[1, L, D]``; U-Nets only.
        mask: ``[1, L]``, non-zero where a token is valid.
        null_embedding: ``[D]``.
    """

    x: Tensor
    ends: tuple[Tensor, Tensor] | None = None
    context: Tensor | None = None
    mask: Tensor | None = None
    null_embedding: Tensor | None = None


def make_inputs(workload: Workload, device: torch.device) -> Inputs:
    """Draw latents and text in float32, as the sampler and the text encoder give them."""
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(SEED + 1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    config, frames, size = workload.config, workload.frames, workload.size
    if workload.stage == "decode":
        return Inputs(draw(frames, config.z_channels, *size))
    null = draw(config.context_dim)
    if workload.stage == "keyframes":
        mask = torch.ones(1, TOKENS, dtype=torch.long, device=device)
        mask[:, -1] = 0
        context = draw(1, TOKENS, config.context_dim) * mask[..., None]
        return Inputs(draw(frames, config.num_channels, *size), None, context, mask, null)
    # Release 1.0: the interpolation reads the null text in both branches.
    context = torch.zeros(1, NULL_TOKENS_V10, config.context_dim, device=device)
    mask = torch.zeros(1, NULL_TOKENS_V10, dtype=torch.long, device=device)
    context[:, 0], mask[:, 0] = null, 1
    ends = (draw(frames, config.latent_channels, *size), draw(frames, config.latent_channels, *size))
    return Inputs(draw(frames, config.out_channels, *size), ends, context, mask, null)


def _timesteps(device: torch.device) -> Tensor:
    return torch.arange(STEPS - 1, -1, -1, device=device) * (1000 // STEPS)


def reference_call(
    workload: Workload, network: nn.Module, inputs: Inputs, precision: Precision = PLAIN
) -> Callable[[], Tensor]:
    """Return the release's formulation of the workload as a function of nothing."""
    frames, device = workload.frames, inputs.x.device
    if workload.stage == "decode":
        return lambda: decode_frames(network, inputs.x, precision)
    texts = Texts(inputs.context.repeat(frames, 1, 1), inputs.mask.repeat(frames, 1), inputs.null_embedding)
    time = _timesteps(device)[0].repeat(frames)
    if workload.stage == "keyframes":
        positions = keyframe_positions("1.0", frames).to(device)
        return lambda: keyframe_step(network, inputs.x, time, texts, positions, precision)
    skips = torch.full((frames,), SKIP_FRAMES[0], device=device)
    return lambda: interpolation_step(network, inputs.x, inputs.ends, time, texts, skips, precision)


def prepare(workload: Workload, network: nn.Module, inputs: Inputs) -> Conditions | None:
    """Work out, once for a run of 50 steps, what our steps read; None for decoding."""
    if workload.stage == "decode":
        return None
    text = Text.of(inputs.context.to(workload.dtype), inputs.mask)
    rows = Text.stack([text, text.unconditional(inputs.null_embedding)])
    told = (rows.context, rows.mask, _timesteps(inputs.x.device))
    if workload.stage == "keyframes":
        positions = keyframe_positions("1.0", workload.frames)
        return network.prepare(*told, lengths=rows.lengths, positions=positions, keyframes=workload.frames)
    return network.prepare(*told, lengths=rows.lengths, num_gaps=workload.frames, skip_frames=SKIP_FRAMES[0])


def our_call(
    workload: Workload,
    network: nn.Module,
    inputs: Inputs,
    conditions: Conditions | None,
    graphs: StepRecorder | None = None,
) -> Callable[[], Tensor]:
    """Return our formulation of the workload as a function of nothing; stacks the branches as the stages do."""
    if workload.stage == "decode":
        return lambda: decode(network, inputs.x.to(workload.dtype))
    predict = step_function(network, conditions, graphs)

    def step() -> Tensor:
        x = inputs.x
        if inputs.ends is None:
            both = torch.cat([x, x])
        else:
            left, right = inputs.ends
            nothing = torch.zeros_like(left)
            both = torch.cat([torch.cat([left, x, right], 1), torch.cat([nothing, x, nothing], 1)])
        both = both.to(workload.dtype).contiguous(memory_format=torch.channels_last)
        return predict(both, 0)

    return step
