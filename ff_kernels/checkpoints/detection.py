"""What a file holds, from its keys and shapes alone: family, stage and configuration."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import CheckpointError, FusionFramesError
from ..models.configs import (
    FAMILIES,
    FLAN_UL2,
    KEYFRAME_V10,
    KEYFRAME_V11,
    MASKED,
    MIXED_VARIANT,
    RELEASED_VARIANT,
    VOLUME_VARIANT,
    WINDOWED_VARIANT,
    MoVQConfig,
    TextConfig,
    UNetConfig,
)
from .reading import Contents

Shapes = Mapping[str, tuple[int, ...]]
Config = UNetConfig | MoVQConfig | TextConfig | None

NULL_KEY = "null_embedding"
PROJECTION_PREFIXES = ("projections.", "projection_base.", "projection_interpolation.", "projection.")
# A full T5 checkpoint holds the other half of the model as well; it is never needed.
_UNUSED_TEXT_PREFIXES = ("decoder.block.", "decoder.embed_tokens.", "decoder.final_layer_norm.", "lm_head.")
TIED_COPY = "encoder.embed_tokens.weight"
_TIED = ("shared.weight", TIED_COPY)

UNET_STAGES = ("keyframe", "interpolation", "masked")
WHERE = {
    ("keyframe", "1.0"): "kandinsky_video.pt of huggingface.co/ai-forever/KandinskyVideo",
    ("interpolation", "1.0"): "kandinsky_video_interpolation.pt of huggingface.co/ai-forever/KandinskyVideo",
    ("masked", "1.0"): "a run of python -m fusionframes.ff_kernels.paper; the authors released none",
    ("keyframe", "1.1"): "t2v.pt of huggingface.co/ai-forever/KandinskyVideo_1_1",
    ("interpolation", "1.1"): "interpolation.pt of huggingface.co/ai-forever/KandinskyVideo_1_1",
    ("movq", ""): "movq.pt of either KandinskyVideo repository",
    ("video_movq", ""): "video_movq.pt of huggingface.co/ai-forever/KandinskyVideo_1_1",
    ("text_encoder", ""): "the encoder of huggingface.co/google/flan-ul2",
    ("projection", ""): "t5_projections.pt of huggingface.co/ai-forever/KandinskyVideo_1_1",
}
NAMES = {
    "keyframe": "a keyframe U-Net",
    "interpolation": "an interpolation U-Net",
    "masked": "a masked-frame interpolation U-Net",
    "movq": "an image MoVQ",
    "video_movq": "a video MoVQ",
    "text_encoder": "a T5 text encoder",
    "projection": "text projections",
}


def places(stage: str, family: str | None = None) -> str:
    """Return where the released files of a stage are; of one family, or of both."""
    families = ("", family) if family else ("", *FAMILIES)
    return " or ".join(where for (name, release), where in WHERE.items() if name == stage and release in families)


@dataclass(frozen=True)
class Kind:
    """What a file is.

    Attributes:
        stage: keyframe, interpolation, movq, video_movq, text_encoder or projection.
        family: "1.0" or "1.1" for U-Nets, empty for what both releases share.
        config: sizes of the network; None for projections.
    """

    stage: str
    family: str
    config: Config = field(default=None, compare=False)

    @property
    def title(self) -> str:
        """The kind in words."""
        return f"{NAMES[self.stage]} of release {self.family}" if self.family else NAMES[self.stage]

    @property
    def where(self) -> str:
        """Where the released file is."""
        return WHERE[self.stage, self.family]


def split_tensors(contents: Contents) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the network's tensors and the extras (null embedding, projections) of a file."""
    network, extras = {}, {}
    for key, tensor in contents.tensors.items():
        is_extra = key == NULL_KEY or key.startswith(PROJECTION_PREFIXES)
        (extras if is_extra else network)[key] = tensor
    if _TIED[0] in network or _TIED[1] in network:
        network = {k: v for k, v in network.items() if not k.startswith(_UNUSED_TEXT_PREFIXES)}
        # Encoder-only copies keep one name of the tied embedding; the last one read counts where both are there.
        embedding = network.get(_TIED[1], network.get(_TIED[0]))
        network.update(dict.fromkeys(_TIED, embedding))
    return network, extras


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors of these names are those of a LoRA."""
    return any(name.endswith((".lora_up.weight", ".lora_B.weight")) for name in names)


def detect(contents: Contents, overrides: Mapping[str, Any] | None = None) -> Kind:
    """Find out what a file holds.

    Args:
        contents: the opened file.
        overrides: configuration fields that shapes cannot tell, such as ``head_dim`` (else 64) and ``groups``
            (else 32); metadata of a converted file is read first.

    Raises:
        CheckpointError: if it is not part of FusionFrames, or its keys contradict each other.
    """
    network, extras = split_tensors(contents)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.items()}
    try:
        if contents.is_folded:
            return _folded_kind(contents)
        stage, family = _stage(shapes, any(key.startswith(PROJECTION_PREFIXES) for key in extras))
        kind = Kind(stage, family)
        if stage == "projection":
            return kind
        config = _CONFIGS[stage](shapes, family)
        stored = contents.metadata.get("config", {})
        known = config.to_dict()
        extra = {**(stored if isinstance(stored, dict) else {}), **(overrides or {})}
        config = type(config).from_dict({**known, **{k: v for k, v in extra.items() if k in _UNSEEN}})
        if known.get("temporal_variant") == RELEASED_VARIANT and extra.get("temporal_variant") == WINDOWED_VARIANT:
            config = replace(config, temporal_variant=WINDOWED_VARIANT)
        _refuse_other_encoder(config)
        _check_unseen(config, shapes)
        _check_told(config, extra)
        return replace(kind, config=config)
    except FusionFramesError as error:
        raise CheckpointError(f"'{contents.path}': {error}") from error
    except (KeyError, IndexError, ValueError, ZeroDivisionError, TypeError) as error:
        raise CheckpointError(
            f"expected the weights of a FusionFrames network in '{contents.path}', got {len(shapes)} tensors of which "
            f"an essential one is absent or misshapen ({error!r}): download the file again"
        ) from error


def _folded_kind(contents: Contents) -> Kind:
    """Return what a file of folded layers says it is: their shapes no longer tell."""
    told = contents.metadata
    if told["stage"] not in UNET_STAGES or told["family"] not in FAMILIES:
        raise ValueError(f"folded layers of {told['stage']!r} of release {told['family']!r}")
    return Kind(told["stage"], told["family"], UNetConfig.from_dict(told["config"]))


def _refuse_other_encoder(config: UNetConfig | MoVQConfig | TextConfig) -> None:
    """Refuse a T5 encoder whose contexts are as wide as Flan-UL2's and mean nothing to the networks."""
    if not isinstance(config, TextConfig) or config.d_model != FLAN_UL2.d_model:
        return
    sizes = [(c.num_layers, c.num_heads, c.d_ff) for c in (config, FLAN_UL2)]
    if sizes[0] != sizes[1]:
        name = "T5-XXL, which other models read" if sizes[0] == (24, 64, 10240) else "another T5"
        raise CheckpointError(
            "expected Flan-UL2 (32 blocks, 16 heads, 16384 inside), got {} ({} blocks, {} heads, {} inside): take "
            "{}".format(name, *sizes[0], WHERE["text_encoder", ""])
        )


# Fields that no shape shows; only these may come from metadata or the caller.
_UNSEEN = ("head_dim", "groups", "num_frames", "relative_attention_max_distance", "layer_norm_epsilon",
           "timestep_offset")  # fmt: skip


def _check_told(config: UNetConfig | MoVQConfig | TextConfig, told: Mapping[str, Any]) -> None:
    """Refuse a network of other sizes than the released ones of which nobody told what shapes do not show."""
    width = "ch" if isinstance(config, MoVQConfig) else "model_channels"
    released = getattr(type(config), width, None)
    missing = [name for name in ("head_dim", "groups") if hasattr(config, name) and name not in told]
    if missing and getattr(config, width, None) != released:
        raise CheckpointError(
            f"expected {' and '.join(missing)} of a network that is {getattr(config, width)} channels wide and not "
            f"{released} as the released one, got a file without metadata: give them, or take the file that has them"
        )


def _check_unseen(config: UNetConfig | MoVQConfig | TextConfig, shapes: Shapes) -> None:
    norms = (".norm_layer.weight", "out_layer.0.weight")
    widths = {
        "head_dim": [shape[0] for key, shape in shapes.items() if key.endswith(".to_query.weight")],
        "groups": [shape[0] // 2 for key, shape in shapes.items() if key.endswith(".context_mlp.1.weight")]
        + [shape[0] for key, shape in shapes.items() if key.endswith(norms)],
    }
    for name in _UNSEEN:
        value = getattr(config, name, None)
        if value is None:
            continue
        if type(value) not in (int, float) or value <= 0 or (type(value) is float and name != "layer_norm_epsilon"):
            raise CheckpointError(f"expected a positive number as {name}, got {value!r}: give the network's own {name}")
        odd = [width for width in widths.get(name, ()) if width % value]
        if odd:
            raise CheckpointError(
                f"expected {name} to divide the {odd[0]} channels of a layer, got {value}: give the network's own "
                f"{name}"
            )


def _stage(shapes: Shapes, has_projections: bool) -> tuple[str, str]:
    if "in_layer.weight" in shapes and "to_time_embed.1.weight" in shapes:
        if "skip_embeddings.weight" in shapes:
            if "to_temporal_embed.1.weight" in shapes:
                return "masked", "1.0"
            is_v11 = any(".temporal_projection_new." in key for key in shapes)
            return "interpolation", "1.1" if is_v11 else "1.0"
        if "to_temporal_embed.1.weight" not in shapes:
            raise CheckpointError(
                "expected a U-Net with temporal layers, got a picture model (Kandinsky 3.0?): take "
                f"{WHERE['keyframe', '1.0']}"
            )
        return "keyframe", "1.1" if "image_in_layer.weight" in shapes else "1.0"
    if "decoder.conv_in.weight" in shapes and "encoder.conv_in.weight" in shapes:
        if "decoder.norm_out.conv_y.weight" not in shapes:
            raise CheckpointError(
                "expected a MoVQ autoencoder, got an ordinary Stable Diffusion autoencoder (its decoder has no "
                f"spatial norms): take {WHERE['movq', '']}"
            )
        is_video = any("temporal" in key for key in shapes) or len(shapes["decoder.mid.block_1.conv1.weight"]) == 5
        return ("video_movq" if is_video else "movq"), ""
    if _TIED[0] in shapes:
        if "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" not in shapes:
            raise CheckpointError(
                f"expected a T5 encoder with a gated feed-forward, got another text encoder: take "
                f"{WHERE['text_encoder', '']}"
            )
        return "text_encoder", ""
    if has_projections and not shapes:
        return "projection", ""
    found = f"something else (its first key is '{next(iter(shapes))}')" if shapes else "no network at all"
    raise CheckpointError(
        f"expected a U-Net, MoVQ or T5 encoder of FusionFrames, got {found}: the "
        "released files are kandinsky_video.pt, kandinsky_video_interpolation.pt, t2v.pt, interpolation.pt, movq.pt, "
        "video_movq.pt and t5_projections.pt"
    )


def _count(shapes: Shapes, prefix: str) -> int:
    numbers = {key[len(prefix) :].split(".", 1)[0] for key in shapes if key.startswith(prefix)}
    return len({n for n in numbers if n.isdigit()})


def _unet_config(shapes: Shapes, family: str) -> UNetConfig:
    levels = _count(shapes, "down_samples.")
    units = tuple(_count(shapes, f"down_samples.{i}.resnet_attn_blocks.") for i in range(levels))
    first = "down_samples.{}.resnet_attn_blocks.0.0.resnet_blocks.{}.projection.weight"
    widths = [shapes[first.format(i, 3)][0] for i in range(levels)]
    unit = math.gcd(*widths)
    init = shapes["in_layer.weight"][0]
    cross = tuple(
        f"down_samples.{i}.resnet_attn_blocks.0.1.in_norm.context_mlp.1.weight" in shapes for i in range(levels)
    )
    itself = tuple(
        f"down_samples.{i}.self_attention_block.in_norm.context_mlp.1.weight" in shapes for i in range(levels)
    )
    hidden = [shape for key, shape in shapes.items() if key.endswith(".feed_forward.0.weight")]
    stage, _ = _stage(shapes, False)
    frames = {"interpolation": None, "masked": MASKED.num_frames}
    return UNetConfig(
        family=family,
        stage=stage,
        num_channels=shapes["in_layer.weight"][1],
        out_channels=shapes["out_layer.2.weight"][0],
        model_channels=unit,
        init_channels=init,
        time_embed_dim=shapes["to_time_embed.1.weight"][0],
        context_dim=shapes["feature_pooling.attention.to_key.weight"][1],
        expansion_ratio=hidden[0][0] // hidden[0][1] if hidden else 4,
        compression_ratio=max(init, widths[0]) // shapes[first.format(0, 0)][0],
        dim_mult=tuple(width // unit for width in widths),
        num_blocks=units,
        add_cross_attention=cross,
        add_self_attention=itself,
        num_frames=frames.get(stage, (KEYFRAME_V10 if family == "1.0" else KEYFRAME_V11).num_frames),
        noise_augmentation="temporal_noise_aug_time_encoding.1.weight" in shapes,
        motion_score="temporal_motion_score_encoding.1.weight" in shapes,
        temporal_variant=_temporal_variant(shapes),
    )


def _temporal_variant(shapes: Shapes) -> str:
    """Return the variant that the keys show; the windowed one has the keys of the released one."""
    if any(".self_attention_block.temporal_attention." in key for key in shapes):
        return MIXED_VARIANT
    convs = [shape for key, shape in shapes.items() if key.endswith(".temporal_resnet_blocks.1.2.weight")]
    return VOLUME_VARIANT if convs and convs[0][-1] > 1 else RELEASED_VARIANT


def _movq_config(shapes: Shapes, family: str) -> MoVQConfig:
    levels = _count(shapes, "encoder.down.")
    ch = shapes["encoder.conv_in.weight"][0]
    resolution = 256
    latents = shapes["decoder.conv_in.weight"][1]
    temporal = [key for key in shapes if key.startswith("decoder.") and key.endswith("temporal_projection1.weight")]
    return MoVQConfig(
        ch=ch,
        ch_mult=tuple(shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] // ch for i in range(levels)),
        num_res_blocks=_count(shapes, "encoder.down.0.block."),
        attn_resolutions=tuple(resolution >> i for i in range(levels) if _count(shapes, f"encoder.down.{i}.attn.")),
        resolution=resolution,
        z_channels=latents,
        in_channels=shapes["encoder.conv_in.weight"][1],
        out_ch=shapes["decoder.conv_out.weight"][0],
        double_z=shapes["encoder.conv_out.weight"][0] == 2 * latents,
        temporal=bool(temporal),
        temporal_mid_blocks="decoder.mid.block_1.temporal_merge1" in shapes or not temporal,
        temporal_kernel_size=tuple(shapes[temporal[0]][2:]) if temporal else (3, 3, 3),
        temporal_attention_block="decoder.mid.temporal_attn_1.q.weight" in shapes,
        temporal_blocks="decoder.mid.temporal_block_1.conv1.weight" in shapes,
        build_3D_decoder=len(shapes["decoder.mid.block_1.conv1.weight"]) == 5,
    )


def _text_config(shapes: Shapes, family: str) -> TextConfig:
    first = "encoder.block.0.layer."
    buckets, heads = shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"]
    vocabulary, width = shapes[_TIED[0]]
    return TextConfig(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shapes[f"{first}0.SelfAttention.q.weight"][0] // heads,
        d_ff=shapes[f"{first}1.DenseReluDense.wi_0.weight"][0],
        num_layers=_count(shapes, "encoder.block."),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )


_CONFIGS = {
    "keyframe": _unet_config,
    "interpolation": _unet_config,
    "masked": _unet_config,
    "movq": _movq_config,
    "video_movq": _movq_config,
    "text_encoder": _text_config,
}
