"""Named workloads: which network, which sizes, which inputs, and how each side is made ready and called.

A U-Net workload is one sampling step: one forward of all guidance branches. A decode workload is one clip of five
frames. Text is 33 tokens (32 and the zero behind them) in the releases' layout; the text encoder reads one prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.folding import fold
from ..models.conditions import Conditions
from ..models.configs import (
    FLAN_UL2,
    INTERPOLATION_V10,
    INTERPOLATION_V11,
    KEYFRAME_V10,
    KEYFRAME_V11,
    MOVQ,
    VIDEO_MOVQ,
    MoVQConfig,
    TextConfig,
    UNetConfig,
)
from ..models.keyframe_unet import keyframe_positions
from ..models.movq import MoVQ
from ..models.text_encoder import NULL_TOKENS_V10, TextEncoder
from ..models.unets import UNETS
from ..stages.decoding import decode
from ..stages.interpolation import SKIP_FRAMES
from ..stages.releases import V11
from ..stages.run import StepRecorder, Text, step_function
from ..stages.tokenizer import MAX_TOKENS
from .precision import PLAIN, Precision
from .released_movq import decode_frames
from .released_text import encode_text
from .released_unet import Shown, Texts, interpolation_step, keyframe_step

SEED = 20231113
STEPS = 50
TOKENS = 33
_MERGES = ("temporal_merge", "time_embed_merge", "skip_merge")


@dataclass(frozen=True)
class Workload:
    """What one line of the benchmark measures.

    Attributes:
        name: as given on the command line.
        stage: "keyframes", "interpolation", "decode" or "text".
        config: sizes of the network.
        frames: keyframes, gaps or decoded frames; prompts of a text encoder.
        size: latent height and width; 1 and the tokens of a prompt.
        is_full_size: the released sizes in 16 bit, for cards; otherwise small sizes in float32.
        is_timed: run by ``bench`` where no name is given; the others are for ``--acceptance`` on a processor.
    """

    name: str
    stage: str
    config: UNetConfig | MoVQConfig | TextConfig
    frames: int
    size: tuple[int, int]
    is_full_size: bool = False
    is_timed: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights on both sides: Flan-UL2 overflows in float16."""
        if not self.is_full_size:
            return torch.float32
        return torch.bfloat16 if self.stage == "text" else torch.float16

    @property
    def has_steps(self) -> bool:
        """Whether it is a step of a sampling loop."""
        return isinstance(self.config, UNetConfig)

    @property
    def branches(self) -> int:
        """Guidance branches of a U-Net."""
        return 3 if self.stage == "keyframes" and self.config.family == "1.1" else 2

    @property
    def unit(self) -> str:
        """What the seconds are the seconds of."""
        height, width = self.size
        branches = "both" if self.branches == 2 else "all three"
        return {
            "keyframes": f"one step, {branches} branches of {self.frames} keyframes of {height}x{width} latents",
            "interpolation": f"one step, both branches of {self.frames} gaps of {height}x{width} latents",
            "decode": f"decoding {self.frames} frames of {height}x{width} latents",
            "text": f"encoding {self.frames} prompt of {width} tokens",
        }[self.stage]


def _small(config: UNetConfig) -> UNetConfig:
    return replace(config, model_channels=128, init_channels=64, time_embed_dim=512, context_dim=1024)


def _tiny(config: UNetConfig) -> UNetConfig:
    # Wide enough for every form of layer that a processor has, the one for 128 channels included.
    return replace(config, model_channels=64, init_channels=32, time_embed_dim=256, context_dim=256)


_DECODER = {"ch": 32, "num_res_blocks": 1}
_ENCODER = TextConfig(vocab_size=512, d_model=256, d_kv=64, d_ff=512, num_layers=12, num_heads=4)


def _workloads() -> dict[str, Workload]:
    small = [
        Workload("keyframes-cpu", "keyframes", _small(KEYFRAME_V10), 15, (32, 32)),
        Workload("interpolation-cpu", "interpolation", _small(INTERPOLATION_V10), 14, (32, 32)),
        Workload("decode-cpu", "decode", replace(MOVQ, ch=128), 5, (32, 32)),
    ]
    checked = [
        Workload("keyframes-small", "keyframes", _tiny(KEYFRAME_V10), 15, (8, 16), is_timed=False),
        Workload("interpolation-small", "interpolation", _tiny(INTERPOLATION_V10), 14, (8, 16), is_timed=False),
        Workload("decode-small", "decode", replace(MOVQ, **_DECODER), 5, (8, 8), is_timed=False),
        Workload("keyframes-1.1-small", "keyframes", _tiny(KEYFRAME_V11), 12, (8, 16), is_timed=False),
        Workload("interpolation-1.1-small", "interpolation", _tiny(INTERPOLATION_V11), 11, (8, 16), is_timed=False),
        Workload("decode-1.1-small", "decode", replace(VIDEO_MOVQ, **_DECODER), 5, (8, 8), is_timed=False),
        Workload("text-small", "text", _ENCODER, 1, (1, 48), is_timed=False),
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
    full += [
        Workload("keyframes-1.1-512", "keyframes", KEYFRAME_V11, 12, (64, 64), is_full_size=True),
        Workload("interpolation-1.1-512", "interpolation", INTERPOLATION_V11, 11, (64, 64), is_full_size=True),
        Workload("decode-1.1-512", "decode", VIDEO_MOVQ, 5, (64, 64), is_full_size=True),
        Workload("text-ul2", "text", FLAN_UL2, 1, (1, MAX_TOKENS), is_full_size=True),
    ]
    return {workload.name: workload for workload in (*small, *checked, *full)}


WORKLOADS = _workloads()


@torch.no_grad()
def make_network(workload: Workload, device: torch.device, home: torch.device | None = None) -> nn.Module:
    """Build the network with random weights that keep the scale of activations; the same for the same workload.

    Args:
        workload: whose network.
        device: where the weights are made.
        home: where each of them is put at once, for a network that the device has no room for; default: they stay.
    """
    # Released weights keep requires_grad, which decides how torch multiplies views: the reference keeps it too.
    network_class = {"decode": MoVQ, "text": TextEncoder}.get(workload.stage) or UNETS[workload.config.stage]
    made = device if home is None else torch.device("meta")
    network = network_class(workload.config, device=made, dtype=workload.dtype).eval()
    if device.type == "meta":
        return network
    generator = torch.Generator(device).manual_seed(SEED)
    for path, module in network.named_modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if home is None:
                _draw(weight, f"{path}.{name}", workload, generator)
            else:
                drawn = _draw(torch.empty_like(weight, device=device), f"{path}.{name}", workload, generator)
                setattr(module, name, nn.Parameter(drawn.to(home)))
    return network


def _draw(weight: Tensor, name: str, workload: Workload, generator: torch.Generator) -> Tensor:
    weight.normal_(generator=generator)
    if weight.ndim > 1:
        weight.mul_(weight[0].numel() ** -0.5)
        if name.endswith("SelfAttention.q.weight"):
            # T5 does not scale its scores: its trained queries are as much smaller.
            weight.mul_(workload.config.d_kv**-0.5)
    elif name.rsplit(".", 1)[-1].startswith(_MERGES):
        weight.mul_(0.2).add_(0.5)
    else:
        weight.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)
    return weight


def make_ready(network: nn.Module) -> nn.Module:
    """Do to our network what loading does after the weights are in place; the reference never passes here."""
    return fold(network)


@dataclass(frozen=True)
class Inputs:
    """What both sides read.

    Attributes:
        x: latents ``[frames, C, h, w]``: noisy, or to be decoded; token numbers ``[1, L]`` of a text encoder.
        ends: left and right keyframes of every gap ``[G, 4, h, w]``; interpolation only.
        context: ``[1, L, D]``; U-Nets only.
        mask: ``[1, L]``, non-zero where a token is valid; U-Nets and text encoders.
        null_embedding: ``[D]``.
        shown: first frame and its mask ``[frames, 5, h, w]``; keyframes of release 1.1 only.
    """

    x: Tensor
    ends: tuple[Tensor, Tensor] | None = None
    context: Tensor | None = None
    mask: Tensor | None = None
    null_embedding: Tensor | None = None
    shown: Tensor | None = None


def make_inputs(workload: Workload, device: torch.device) -> Inputs:
    """Draw latents and text in float32, as the sampler and the text encoder give them."""
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(SEED + 1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    config, frames, size = workload.config, workload.frames, workload.size
    if workload.stage == "text":
        ids = torch.randint(config.vocab_size, (frames, size[1]), generator=generator, device=device)
        mask = torch.ones_like(ids)
        # Longer than its prompt, as most are.
        mask[:, TOKENS:] = 0
        return Inputs(ids, mask=mask)
    if workload.stage == "decode":
        return Inputs(draw(frames, config.z_channels, *size))
    null = draw(config.context_dim)
    ends = None
    if workload.stage == "interpolation":
        ends = (draw(frames, config.latent_channels, *size), draw(frames, config.latent_channels, *size))
    if ends is not None and config.family == "1.0":
        # Release 1.0: the interpolation reads the null text in both branches.
        context = torch.zeros(1, NULL_TOKENS_V10, config.context_dim, device=device)
        mask = torch.zeros(1, NULL_TOKENS_V10, dtype=torch.long, device=device)
        context[:, 0], mask[:, 0] = null, 1
    else:
        mask = torch.ones(1, TOKENS, dtype=torch.long, device=device)
        mask[:, -1] = 0
        context = draw(1, TOKENS, config.context_dim) * mask[..., None]
    x, shown = draw(frames, config.out_channels, *size), None
    if workload.branches == 3:
        shown = torch.zeros(frames, config.num_channels - config.out_channels, *size, device=device)
        shown[0] = draw(*shown.shape[1:])
        shown[0, -1] = 1
    return Inputs(x, ends, context, mask, null, shown)


def _timesteps(device: torch.device) -> Tensor:
    return torch.arange(STEPS - 1, -1, -1, device=device) * (1000 // STEPS)


def reference_call(
    workload: Workload, network: nn.Module, inputs: Inputs, precision: Precision = PLAIN
) -> Callable[[], Tensor]:
    """Return the release's formulation of the workload as a function of nothing."""
    frames, device = workload.frames, inputs.x.device
    if workload.stage == "decode":
        return lambda: decode_frames(network, inputs.x, precision)
    if workload.stage == "text":
        return lambda: encode_text(network, inputs.x, inputs.mask)
    texts = Texts(inputs.context.repeat(frames, 1, 1), inputs.mask.repeat(frames, 1), inputs.null_embedding)
    time = _timesteps(device)[0].repeat(frames)
    if workload.stage == "keyframes":
        positions = keyframe_positions(workload.config.family, frames).to(device)
        shown = None if inputs.shown is None else Shown(inputs.shown, V11.noise_level, V11.motion_score)
        return lambda: keyframe_step(network, inputs.x, time, texts, positions, precision, shown)
    skips = torch.full((frames,), SKIP_FRAMES[0], device=device)
    return lambda: interpolation_step(network, inputs.x, inputs.ends, time, texts, skips, precision)


def prepare(workload: Workload, network: nn.Module, inputs: Inputs) -> Conditions | None:
    """Work out, once for a run of 50 steps, what our steps read; None for decoding and text."""
    if not workload.has_steps:
        return None
    family, frames = workload.config.family, workload.frames
    text = Text.of(inputs.context.to(workload.dtype), inputs.mask)
    null = text.unconditional(inputs.null_embedding)
    rows = Text.stack([text, *[null] * (workload.branches - 1)])
    told = (rows.context, rows.mask, _timesteps(inputs.x.device))
    given: dict[str, Any] = {"lengths": rows.lengths}
    if workload.stage == "keyframes":
        given |= {"positions": keyframe_positions(family, frames), "keyframes": frames}
        if inputs.shown is not None:
            given |= {"noise_level": V11.noise_level, "motion_score": V11.motion_score}
    else:
        given |= {"num_gaps": frames, "skip_frames": SKIP_FRAMES[0]}
        if family == "1.1":
            given["merge"] = torch.tensor([1.0, 0.0])
    return network.prepare(*told, **given)


def our_call(
    workload: Workload,
    network: nn.Module,
    inputs: Inputs,
    conditions: Conditions | None,
    graphs: StepRecorder | None = None,
) -> Callable[[], Tensor]:
    """Return our formulation of the workload as a function of nothing; stacks the branches as the stages do."""
    if workload.stage == "decode":
        return lambda: decode(network, inputs.x.to(workload.dtype), shared_map=workload.config.is_video)
    if workload.stage == "text":
        return lambda: network(inputs.x, inputs.mask)
    predict = step_function(network, conditions, graphs)

    def step() -> Tensor:
        return predict(_stacked(inputs).to(workload.dtype).contiguous(memory_format=torch.channels_last), 0)

    return step


def _stacked(inputs: Inputs) -> Tensor:
    """Return what the branches of a step see, one behind the other."""
    x = inputs.x
    if inputs.shown is not None:
        with_frame = torch.cat([x, inputs.shown], 1)
        return torch.cat([with_frame, with_frame, torch.cat([x, torch.zeros_like(inputs.shown)], 1)])
    if inputs.ends is None:
        return torch.cat([x, x])
    left, right = inputs.ends
    nothing = torch.zeros_like(left)
    return torch.cat([torch.cat([left, x, right], 1), torch.cat([nothing, x, nothing], 1)])
