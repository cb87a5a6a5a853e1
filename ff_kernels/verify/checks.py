"""What the engine computes for each kind of reference case, and how far from the authors' numbers it may be."""

from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..models.configs import MoVQConfig, TextConfig, UNetConfig
from ..models.movq import MoVQ
from ..models.text_encoder import TextEncoder, TextProjection, project_context
from ..models.unets import UNETS
from ..ops.step import THRESHOLD_V10
from ..sampling.schedule import alphas_cumprod_v11, posterior_tables_v10
from ..stages.decoding import decode
from ..stages.interpolation import SKIP_FRAMES, interpolate
from ..stages.keyframes import FirstFrame, sample_keyframes, sample_picture
from ..stages.releases import RELEASES, V11
from ..stages.run import Run, Text, sampling_schedule
from .cases import How, TapeNoise, fill_weights

FORWARD_LIMIT = 1e-5
TABLE_LIMIT = 1e-6
PIPELINE_LIMITS = {"1.0": 2e-3, "1.1": 2e-2}
# What the authors' interpolation of 1.1 takes where a call names no perturbation.
_PERTURBATION_V11 = 25
_FEED_FORWARD = "gated-silu"

Outputs = dict[str, tuple[Tensor, float]]


def _unet(case: dict[str, Any], how: How, stage: str, listed: dict[str, list[int]] | None) -> nn.Module:
    # In the authors' code a U-Net without init_channels starts as wide as its first level.
    config = UNetConfig.from_dict({"init_channels": None, **case["config"], "family": how.family, "stage": stage})
    return how.ready(UNETS[stage](config), case, listed)


def _movq(case: dict[str, Any], how: How, listed: dict[str, list[int]] | None = None) -> MoVQ:
    return how.ready(MoVQ(MoVQConfig.from_dict(case["config"])), case, listed)


def _require(field: str, value: object, expected: object) -> None:
    if value != expected:
        raise InputError(
            f"expected {field} {expected!r}, the only one of the releases, got {value!r}: the engine has no other"
        )


def _rows(values: Tensor) -> Tensor:
    return values[None]


def check_keyframe_unet(case: dict[str, Any], t: dict[str, Tensor], how: How) -> Outputs:
    """One forward in video mode and, for release 1.1, one in image mode; every sample has its own context."""
    unet = _unet(case, how, "keyframe", case["state_dict"])
    frames = case["config"].get("num_frames") or case["num_frames"]
    positions = t["temporal_positions" if "temporal_positions" in t else "temporal"]
    extra = {"noise_level": t.get("noise_aug_time"), "motion_score": t.get("motion_score")}
    told = (t["context"], t["context_mask"], _rows(t["time"]))
    conditions = unet.prepare(*told, positions=positions, keyframes=frames, frames_per_row=1, **extra)
    outputs = {"out": (unet(t["x"], conditions), FORWARD_LIMIT)}
    if "image_x" in t:
        conditions = unet.prepare(t["image_context"], t["image_context_mask"], _rows(t["image_time"]), positions=None)
        outputs["image_out"] = (unet(t["image_x"], conditions), FORWARD_LIMIT)
    return outputs


def check_interpolation_unet(case: dict[str, Any], t: dict[str, Tensor], how: How) -> Outputs:
    """One forward; every gap has its own context."""
    unet = _unet(case, how, "interpolation", case["state_dict"])
    gaps = case["num_temporal_groups" if how.family == "1.0" else "num_predicted_groups"]
    conditions = unet.prepare(
        t["context"], t["context_mask"], _rows(t["time"]), num_gaps=gaps, gaps_per_row=1,
        skip_frames=t["skip_frames"], merge=t.get("temporal_mask"),
        noise_level=t.get("perturbation_time", 0 if how.family == "1.0" else _PERTURBATION_V11),
    )  # fmt: skip
    return {"out": (unet(t["x"], conditions), FORWARD_LIMIT)}


def check_movq(case: dict[str, Any], t: dict[str, Tensor], how: How) -> Outputs:
    """Encode, decode, or both; the decoder of release 1.1 sees the tensor as one chunk."""
    movq = _movq(case, how, case["state_dict"])
    outputs = {"latent": (movq.encode(t["image"]), FORWARD_LIMIT)} if "image" in t else {}
    if "z" in t:
        outputs["decoded"] = (movq.decode(t["z"], shared_map=RELEASES[how.family].shares_map), FORWARD_LIMIT)
    return outputs


def check_text(case: dict[str, Any], t: dict[str, Tensor], how: How) -> Outputs:
    """Encode token numbers and project them."""
    _require("feed_forward_proj", case["config"].get("feed_forward_proj", _FEED_FORWARD), _FEED_FORWARD)
    encoder = TextEncoder(TextConfig.from_dict(case["config"]))
    fill_weights(encoder, case["seed"], case["state_dict"])
    sizes = case["projection"]["state_dict"]
    projection = TextProjection(sizes["0.weight"][1], sizes["0.weight"][0])
    fill_weights(projection, case["projection"]["seed"], sizes)
    hidden = encoder(t["input_ids"], t["attention_mask"])
    context, mask = project_context(hidden, t["attention_mask"], projection)
    return {
        "last_hidden_state": (hidden, FORWARD_LIMIT),
        "context": (context, FORWARD_LIMIT),
        "context_mask": (mask, 0.0),
    }


def check_schedule(case: dict[str, Any], t: dict[str, Tensor], how: How) -> Outputs:
    """The 1.0 tables of a number of steps; the percentile is none of them."""
    return {name: (table, TABLE_LIMIT) for name, table in vars(posterior_tables_v10(case["steps"])).items()}


def _interpolated(
    case: dict[str, Any], t: dict[str, Tensor], how: How, keyframes: Tensor, text: Text | None
) -> Outputs:
    limit, outputs = PIPELINE_LIMITS[how.family], {}
    if "video_medium" not in t:
        return outputs
    unet = _unet(case["interpolation"], how, "interpolation", None)
    steps = case["steps"] if how.family == "1.0" else len(t["interpolation_timesteps"])
    for name, before, skip in zip(
        ("video_medium", "video_high"), (keyframes, t["video_medium"]), SKIP_FRAMES, strict=True
    ):
        if name in t:
            skip = case.get("skip_frames", {}).get(name.removeprefix("video_"), skip)
            run, null = Run(TapeNoise(case["tape_seed"]["interpolation"])), t["interpolation_null_embedding"]
            scale = case["interpolation_guidance_scale"]
            video = interpolate(
                unet, before[None], text, null, run, skip_frames=skip, steps=steps, guidance_scale=scale
            )
            outputs[name] = (video[0], limit)
    return outputs


def _decoded(case: dict[str, Any], t: dict[str, Tensor], how: How, keyframes: Tensor) -> Outputs:
    if "frames" not in t:
        return {}
    last = t.get("video_high", t.get("video_medium", keyframes))
    movq = _movq(case[RELEASES[how.family].decoder], how)
    return {"frames": (decode(movq, last, shared_map=RELEASES[how.family].shares_map), PIPELINE_LIMITS[how.family])}


def check_pipeline_v10(case: dict[str, Any], t: dict[str, Tensor], how: How) -> Outputs:
    """Keyframes without and with a negative prompt, both interpolation passes, decoding."""
    _require("percentile", case.get("percentile", THRESHOLD_V10), THRESHOLD_V10)
    unet = _unet(case["keyframe"], how, "keyframe", None)
    text = Text.of(t["context"], t["context_mask"])
    negative = Text.of(t["negative_context"], t["negative_context_mask"]) if "negative_context" in t else None
    others = {"keyframes_plain": text.unconditional(t["null_embedding"]), "keyframes_negative": negative}
    outputs: Outputs = {}
    for name, unconditional in others.items():
        if name in t and unconditional is not None:
            frames = sample_keyframes(
                unet, text, unconditional, Run(TapeNoise(case["tape_seed"]["keyframes"])), size=t[name].shape[-2:],
                keyframes=t[name].shape[0], guidance_scale=case["guidance_scale"], steps=case["steps"],
            )  # fmt: skip
            outputs[name] = (frames[0], PIPELINE_LIMITS[how.family])
    keyframes = t["keyframes_plain" if "keyframes_plain" in t else "keyframes_negative"]
    return outputs | _interpolated(case, t, how, keyframes, None) | _decoded(case, t, how, keyframes)


def check_pipeline_v11(case: dict[str, Any], t: dict[str, Tensor], how: How) -> Outputs:
    """First frame, keyframes, both interpolation passes, decoding, and the schedules they run on."""
    unet = _unet(case["keyframe"], how, "keyframe", None)
    limit, steps, seeds = PIPELINE_LIMITS[how.family], len(t["keyframe_timesteps"]), case["tape_seed"]
    text = Text.of(t["context"], t["context_mask"])
    null = text.unconditional(t["null_embedding"])
    outputs: Outputs = {}
    if "image_latent" in t:
        picture = sample_picture(
            unet, text, null, Run(TapeNoise(seeds["image_latent"])), steps=steps,
            size=t["image_latent"].shape[-2:], guidance_scale=case["image_guidance"],
        )  # fmt: skip
        outputs["image_latent"] = (picture, limit)
    first_frame = FirstFrame(
        t["key_frame"][None], case["guidance_weight_image"], case["motion_score"], case["noise_augmentation"]
    )
    keyframes = sample_keyframes(
        unet, text, null, Run(TapeNoise(seeds["keyframes"])), size=first_frame.latents.shape[-2:],
        keyframes=t["keyframes"].shape[0], first_frame=first_frame, guidance_scale=case["guidance_weight_prompt"],
        steps=steps,
    )  # fmt: skip
    outputs["keyframes"] = (keyframes[0], limit)
    for name in ("keyframe", "interpolation"):
        if f"{name}_timesteps" in t:
            schedule = sampling_schedule(getattr(V11, name).changed(len(t[f"{name}_timesteps"])))
            outputs[f"{name}_timesteps"] = (schedule.timesteps, 0.0)
            outputs[f"{name}_alphas_cumprod"] = (alphas_cumprod_v11(), TABLE_LIMIT)
    return outputs | _interpolated(case, t, how, t["keyframes"], text) | _decoded(case, t, how, t["keyframes"])
