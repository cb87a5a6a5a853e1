"""Sizes of the networks as frozen dataclasses, and the presets of the two releases."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from ..errors import InputError

FAMILIES = ("1.0", "1.1")
STAGES = ("keyframe", "interpolation", "masked")
# Where time is mixed in a keyframe U-Net (paper figure 3); the releases are the second.
RELEASED_VARIANT, WINDOWED_VARIANT = "Conv1dAttn1dBlocks", "Conv1dAttn3dBlocks"
MIXED_VARIANT, VOLUME_VARIANT = "Conv1dAttn1dLayers", "Conv3dAttn1dBlocks"
TEMPORAL_VARIANTS = (MIXED_VARIANT, RELEASED_VARIANT, VOLUME_VARIANT, WINDOWED_VARIANT)
# Release 1.0 spreads as many units of time over its keyframes, in whole numbers.
POSITION_UNITS_V10 = 180


class _FromDict:
    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a mapping; lists become tuples, keys that are not fields are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class UNetConfig(_FromDict):
    """Sizes of a U-Net; the defaults are those of the releases (RELEASES.md, "Sizes").

    Attributes:
        family: "1.0" or "1.1".
        stage: "keyframe", "interpolation", or "masked": the paper's baseline of the interpolation.
        num_frames: keyframes the network was trained on (15 in 1.0, 12 in 1.1); other counts run as well.
        temporal_variant: one of ``TEMPORAL_VARIANTS``; the interpolation mixes time in its own way and knows one.
        timestep_offset: how far the timestep told lies below the level of the noise, in steps of 1000, release 1.0:
            training on 1000 steps gives 1. A run of 50 steps as released tells 20 too little, and the demo was trained
            on such runs. Only solvers other than the release's own formula read it.
    """

    family: str
    stage: str
    num_channels: int
    out_channels: int
    model_channels: int = 384
    init_channels: int = 192
    time_embed_dim: int = 1536
    context_dim: int = 4096
    groups: int = 32
    head_dim: int = 64
    expansion_ratio: int = 4
    compression_ratio: int = 2
    dim_mult: tuple[int, ...] = (1, 2, 4, 8)
    num_blocks: tuple[int, ...] = (3, 3, 3, 3)
    add_cross_attention: tuple[bool, ...] = (False, True, True, True)
    add_self_attention: tuple[bool, ...] = (False, True, True, True)
    num_frames: int | None = None
    noise_augmentation: bool = False
    motion_score: bool = False
    temporal_variant: str = RELEASED_VARIANT
    timestep_offset: int = 1

    def __post_init__(self) -> None:
        """Refuse what no block could be built from."""
        if self.family not in FAMILIES or self.stage not in STAGES:
            raise InputError(
                f"a U-Net is of family 1.0 or 1.1 and stage {', '.join(STAGES)}, got {self.family!r} and "
                f"{self.stage!r}: correct the configuration"
            )
        if self.stage == "masked" and self.family != "1.0":
            raise InputError(f"a masked-frame U-Net is of family 1.0, got {self.family!r}: correct the configuration")
        check_variant(self.temporal_variant)
        if self.init_channels is None:
            object.__setattr__(self, "init_channels", self.model_channels)

    @property
    def latent_channels(self) -> int:
        """Channels of one latent frame: 4 in both releases."""
        return self.out_channels // 3 if self.stage == "interpolation" else self.out_channels

    @property
    def side_multiple(self) -> int:
        """Latent height and width must be multiples of this."""
        halvings = len(self.dim_mult) - 1
        # Windows of 2 x 2 positions must fit the smallest level as well.
        return 2 ** (halvings + (self.temporal_variant == WINDOWED_VARIANT))


def check_sides(width: int, height: int, multiple: int, unit: str = "pixels") -> None:
    """Refuse sides that a network cannot halve, naming the nearest that it can.

    Raises:
        InputError: naming the side, the multiple and what to take.
    """
    for name, value in (("width", width), ("height", height)):
        if value < multiple or value % multiple:
            near = max(1, round(value / multiple)) * multiple
            raise InputError(f"{name} expected a multiple of {multiple} {unit}, got {value}: take {near}")


def check_keyframes(family: str, keyframes: int) -> None:
    """Refuse more keyframes than a release can tell apart.

    Raises:
        InputError: naming how many it can.
    """
    if family == "1.0" and keyframes > POSITION_UNITS_V10:
        raise InputError(
            f"expected at most {POSITION_UNITS_V10} keyframes for release 1.0, got {keyframes}: ask for fewer"
        )


def check_variant(name: str) -> None:
    """Refuse the name of a temporal variant that does not exist.

    Raises:
        InputError: naming those that do.
    """
    if name not in TEMPORAL_VARIANTS:
        raise InputError(f"expected a temporal variant, got {name!r}: choose from {', '.join(TEMPORAL_VARIANTS)}")


@dataclass(frozen=True)
class MoVQConfig(_FromDict):
    """Sizes and temporal parts of a MoVQ autoencoder; defaults are the released image MoVQ.

    The temporal flags give every row of the paper's table 3 (RELEASES.md, "Decoders of table 3").

    Attributes:
        temporal: convolution over time after each convolution of the decoder's ResNet blocks.
        temporal_kernel_size: (3, 1, 1) or (3, 3, 3).
        temporal_attention_block: attention over time after each spatial attention.
        temporal_blocks: own ResNet blocks over time.
        build_3D_decoder: 3x3x3 instead of 3x3 convolutions in the decoder's ResNet blocks.
    """

    ch: int = 256
    ch_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (32,)
    resolution: int = 256
    z_channels: int = 4
    in_channels: int = 3
    out_ch: int = 3
    double_z: bool = False
    groups: int = 32
    temporal: bool = False
    temporal_mid_blocks: bool = True
    temporal_kernel_size: tuple[int, int, int] = (3, 3, 3)
    temporal_attention_block: bool = False
    temporal_blocks: bool = False
    build_3D_decoder: bool = False  # noqa: N815 (the releases' own name)

    @property
    def factor(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def is_video(self) -> bool:
        """Whether the decoder looks at more than one frame."""
        return self.temporal or self.temporal_attention_block or self.temporal_blocks or self.build_3D_decoder


@dataclass(frozen=True)
class TextConfig(_FromDict):
    """Sizes of a T5 encoder with gated SiLU; defaults are Flan-UL2 (RELEASES.md, "Sizes")."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 256
    d_ff: int = 16384
    num_layers: int = 32
    num_heads: int = 16
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6


KEYFRAME_V10 = UNetConfig("1.0", "keyframe", 4, 4, num_frames=15)
KEYFRAME_V11 = UNetConfig("1.1", "keyframe", 9, 4, num_frames=12, noise_augmentation=True, motion_score=True)
INTERPOLATION_V10 = UNetConfig("1.0", "interpolation", 20, 12)
INTERPOLATION_V11 = UNetConfig("1.1", "interpolation", 20, 12)
# The paper's baseline was never released: the keyframe U-Net with known frames and their mask beside the noisy ones.
MASKED = UNetConfig("1.0", "masked", 9, 4, num_frames=5)
MOVQ = MoVQConfig()
VIDEO_MOVQ = replace(MOVQ, temporal=True, temporal_attention_block=True)
FLAN_UL2 = TextConfig()


@dataclass(frozen=True)
class LatentSpace(_FromDict):
    """How latents relate to pixels: what a host needs for sizes and previews, stored beside a keyframe U-Net.

    Attributes:
        factor: pixels per latent position and side; 8 in both releases.
        rgb_factors: ``[4][3]`` from latent channels to RGB in -1..1, or None where they were never measured.
        rgb_bias: ``[3]`` added to that.
    """

    factor: int = 8
    rgb_factors: tuple[tuple[float, ...], ...] | None = None
    rgb_bias: tuple[float, ...] | None = None
