"""The U-Nets as core's MODEL: in every sampler and scheduler, with previews, LoRA and context windows."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...ff_kernels.checkpoints.detection import NULL_KEY
from ...ff_kernels.checkpoints.folding import Target
from ...ff_kernels.checkpoints.reading import FOLDED_KEY, LATENTS_KEY, METADATA_KEY, pack_metadata
from ...ff_kernels.errors import InputError
from ...ff_kernels.models.configs import UNetConfig, check_sides
from ...ff_kernels.ops import clip_to_quantile, clip_to_range
from ...ff_kernels.ops.step import THRESHOLD_V10
from ...ff_kernels.sampling.levels import trained_levels
from ...ff_kernels.sampling.noise import KEYFRAMES, SeededNoise, stage_seeds
from ...ff_kernels.sampling.schedule import TRAIN_STEPS
from ...ff_kernels.stages.keyframes import draw_start
from ...ff_kernels.stages.releases import V10
from .._compat import (
    EPS,
    ON_CLEANUP,
    ON_LOAD,
    PREPARE_SAMPLING,
    SAMPLER_SAMPLE,
    BaseModel,
    CONDRegular,
    ModelSamplingDiscrete,
    ModelType,
    SupportedModel,
    load_weights,
    make_patcher,
    mm,
    pick_unet_dtypes,
    quantisation_of,
    set_factory,
    set_inference_dtype,
)
from .clips import clip_numbers
from .conditioner import KEY, Conditioner, unload_patched, unpatch_other, with_conditioner
from .files import Weights
from .first_frame import first_frame_of, numbers_of
from .folded import fill_folded, fill_from_folded, make_whole_patcher, refuse_folded, size_of
from .latent import NO_FIRST_FRAME, VideoLatents
from .networks import NETWORKS, EngineView
from .runs import RUN, with_run
from .tables import TABLES, with_tables
from .text import context_of
from .training import weigh_for_training

# Core multiplies it with latent positions to guess what to free. Counted for a step of the released keyframe networks,
# one branch to three of 256 x 256 to 512 x 512 pixels: 0.23 to 0.40.
MEMORY_USAGE_FACTOR = 0.4
# Core's samplers tell the times that the release's own run tells.
RELEASED_OFFSET = TRAIN_STEPS // V10.keyframe.steps


class KeyframeSampling(ModelSamplingDiscrete, EPS):
    """Noise levels of a release's keyframe run; an index of the table is the timestep told to the network."""

    def __init__(self, family: str) -> None:
        torch.nn.Module.__init__(self)
        sigmas = trained_levels(family, RELEASED_OFFSET).sigmas
        self.sigma_data, self.num_timesteps = 1.0, len(sigmas)
        self.set_sigmas(sigmas)

    def percent_to_sigma(self, percent: float) -> float:
        """Return the noise level after a share of the run; core's own assumes a table of 1000."""
        if percent <= 0.0:
            return 999999999.9
        if percent >= 1.0:
            return 0.0
        return self.sigma(torch.tensor((1.0 - percent) * (self.num_timesteps - 1))).item()


class CoreModel(BaseModel):
    """A U-Net of FusionFrames in core's sampling."""

    def __init__(self, config: "CoreConfig", device: Any) -> None:
        super().__init__(config, ModelType.EPS, device=device, unet_model=NETWORKS[config.network.stage])
        self.network_config: UNetConfig = config.network
        self.null_embedding: Tensor | None = config.null_embedding
        self.latent_space, self.is_folded = config.space, config.custom_operations is torch.nn
        self.is_filed_folded = config.is_filed_folded
        self.model_sampling = KeyframeSampling(config.network.family)
        # Not registered: it is loaded and evicted apart from the rest.
        conditioner = Conditioner(self.diffusion_model, is_folded=self.is_folded)
        object.__setattr__(self, "conditioner", conditioner)
        object.__setattr__(self.diffusion_model, "conditioner", conditioner)

    def train(self, mode: bool = True) -> "CoreModel":
        """Switch to training, unless layers are folded: core would find none to train and say so in its own words."""
        if mode and self.is_folded:
            refuse_folded(self)
        return super().train(mode)

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return what core saves, with all that our loader wants besides the weights."""
        out = super().state_dict_for_saving(*args, **kwargs)
        notes = {"config": self.network_config.to_dict(), LATENTS_KEY: self.latent_space.to_dict()}
        if self.is_filed_folded:
            # Shapes of folded layers do not tell what they are.
            config = self.network_config
            notes |= {"family": config.family, "stage": config.stage, FOLDED_KEY: True}
        out[METADATA_KEY] = pack_metadata(notes)
        if self.null_embedding is not None:
            out[NULL_KEY] = self.null_embedding
        return out

    def memory_required(self, input_shape: Any, *_: Any, **__: Any) -> float:
        """Return the bytes that a call needs besides weights, of inputs ``[B, C, ...]``.

        By core's formula for fused attention, as these networks use no other; its other one says seven times that.
        """
        positions = input_shape[0] * math.prod(input_shape[2:])
        return positions * mm.dtype_size(self.get_dtype_inference()) * 0.01 * self.memory_usage_factor * 1024**2

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Turn one conditioning entry into what the network's forward takes."""
        config = self.network_config
        where = f"{kwargs.get('prompt_type') or 'the'} conditioning"
        require_stage(config, "keyframe", "model")
        check_sides(*kwargs["noise"].shape[:-3:-1], config.side_multiple, "latent positions")
        context, mask = context_of(kwargs["cross_attn"], kwargs, self.null_embedding, config.context_dim, where)
        first_frame = self._first_frame(where, **kwargs)
        return {"c_crossattn": CONDRegular(context), "context_mask": CONDRegular(mask), **first_frame}

    def _first_frame(self, where: str, **kwargs: Any) -> dict[str, Any]:
        noise = kwargs["noise"]
        clips, channels, T, *size = noise.shape
        shape = (clips, T, channels, *size)
        first_frame = first_frame_of(where, kwargs, self.network_config.family, shape)
        if first_frame is not None:
            seed = int(kwargs.get("seed") or 0)
            source = SeededNoise(stage_seeds(seed, clip_numbers(noise, seed), KEYFRAMES))
            _, shown = draw_start(source, shape, noise, first_frame)
        elif kwargs.get(NO_FIRST_FRAME):
            shown = noise.new_zeros(clips, T, channels + 1, *size)
        else:
            return {}
        rows = {key: CONDRegular(torch.tensor([value])) for key, value in numbers_of(kwargs).items()}
        return {"first_frame": CONDRegular(shown.transpose(1, 2)), **rows}

    def resize_cond_for_context_window(
        self, cond_key: str, cond_value: Any, window: Any, x_in: Tensor, device: Any, retain_index_list: Any = ()
    ) -> Any:
        """Cut what is given per frame to the frames of a context window (core 0.18 on)."""
        if cond_key != "first_frame":
            # Handing it back keeps core from cutting text whose width happens to equal the number of frames.
            return cond_value
        return cond_value._copy_with(window.get_tensor(cond_value.cond, device, dim=2))


class CoreConfig(SupportedModel):
    """What core asks about a model."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 (core reads it from the class)
    memory_usage_factor = MEMORY_USAGE_FACTOR

    def __init__(self, weights: Weights, is_folded: bool = False) -> None:
        # Core's FreeU finds its two stages by four and by two times this width: the two lowest skips here.
        super().__init__({"config": weights.kind.config, "model_channels": lowest_skip(weights.kind.config) // 4})
        self.network: UNetConfig = weights.kind.config
        self.custom_operations = torch.nn if is_folded else None
        self.is_filed_folded = weights.is_folded
        self.null_embedding = None if weights.null_embedding is None else weights.null_embedding.float()
        self.space = weights.space
        self.latent_format = VideoLatents(self.space)

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> CoreModel:
        """Return the model without its weights."""
        return CoreModel(self, device)

    def clip_target(self, state_dict: Any = None) -> None:
        """Return nothing: the text encoder is a file of its own."""


def lowest_skip(config: UNetConfig) -> int:
    """Return the channels of the skip between the smallest maps, those of the network where it has no skip."""
    return config.model_channels * config.dim_mult[-2 if len(config.dim_mult) > 1 else 0]


def clip_denoised(arguments: dict[str, Any]) -> Tensor:
    """Clip core's estimate ``[B, 4, T, h, w]`` as the release does, after guidance and frame by frame."""
    denoised = arguments["denoised"]
    if denoised.requires_grad:
        return weigh_for_training(denoised, arguments["sigma"])
    if arguments["model"].network_config.family == "1.1":
        return clip_to_range(denoised)
    frames = denoised.movedim(2, 1)
    return (
        clip_to_quantile(frames.flatten(0, 1).float(), THRESHOLD_V10)
        .unflatten(0, frames.shape[:2])
        .movedim(1, 2)
        .to(denoised)
    )


def load_model(
    weights: Weights, dtype: torch.dtype | None, is_folded: bool = False, disable_dynamic: bool = False
) -> Any:
    """Return core's MODEL of an opened file.

    Args:
        weights: a keyframe, interpolation or masked-frame U-Net.
        dtype: dtype of the weights, None for core's choice.
        is_folded: fold the layers for the device and dtype to compute in; no patch of weights applies to them then.
            Those of a folded file are so either way.
        disable_dynamic: core's wish for a patcher without paging.
    """
    is_folded = is_folded or weights.is_folded
    is_mixed = bool(weights.kept) and not is_folded
    stored, cast = pick_unet_dtypes(dtype, weights.parameters, None if is_mixed else weights.dtype)
    patcher = _load_folded(weights, cast or stored) if is_folded else _load_released(weights, stored, cast)
    patcher.add_wrapper_with_key(PREPARE_SAMPLING, KEY, with_conditioner)
    patcher.add_callback_with_key(ON_LOAD, KEY, unpatch_other)
    patcher.add_callback_with_key(ON_CLEANUP, KEY, unload_patched)
    if weights.kind.stage == "keyframe":
        patcher.set_model_sampler_post_cfg_function(clip_denoised)
        patcher.add_wrapper_with_key(SAMPLER_SAMPLE, TABLES, with_tables)
    patcher.add_wrapper_with_key(SAMPLER_SAMPLE, RUN, with_run)
    set_factory(patcher, load_model, weights, dtype, is_folded)
    return patcher


def _load_released(weights: Weights, stored: torch.dtype, cast: torch.dtype | None) -> Any:
    # As they are in the file: core casts, layer by layer, and its pager reads them from there again.
    tensors = weights.for_core(stored)
    config = CoreConfig(weights)
    config.quant_config = quantisation_of(tensors)
    set_inference_dtype(config, stored, cast, mm.get_torch_device())
    offload = mm.unet_offload_device()
    model = config.get_model(None, device=offload)
    patcher = make_patcher(model, mm.get_torch_device(), offload)
    own, rest = model.conditioner.part_tensors(tensors)
    load_weights(patcher, model.diffusion_model, rest)
    load_weights(patcher, model.conditioner.diffusion_model, own)
    # Core would count all that the state dict lists.
    patcher.size = size_of(model.diffusion_model)
    return patcher


def _load_folded(weights: Weights, dtype: torch.dtype) -> Any:
    config, device = CoreConfig(weights, is_folded=True), mm.get_torch_device()
    set_inference_dtype(config, dtype, None, device)
    model = config.get_model(None, device="meta")
    own, rest = model.conditioner.part_tensors(weights.widened(dtype))
    target = Target(device, dtype)
    fill_each = fill_folded
    if weights.is_folded:
        fill_each = partial(fill_from_folded, is_exact=not (weights.kept or weights.loose))
    fill_each(model.diffusion_model, rest, target)
    fill_each(model.conditioner, {f"diffusion_model.{k}": v for k, v in own.items()}, target)
    model.diffusion_model.released = weights.as_filed()
    model.device = mm.unet_offload_device()
    return make_whole_patcher(model, device, model.device)


def network_of(model: Any, stage: str | tuple[str, ...], node_input: str) -> tuple[EngineView, CoreModel]:
    """Return the engine's view of a MODEL of a stage, or of one of several, and the model itself.

    Raises:
        InputError: if the MODEL is another pack's, or of another stage.
    """
    inner = model.model
    if not isinstance(inner, CoreModel):
        raise InputError(
            f"{node_input} expected a FusionFrames U-Net, got {type(inner).__name__}: load one with FusionFrames Load "
            "Model"
        )
    require_stage(inner.network_config, stage, node_input)
    return EngineView(inner.diffusion_model), inner


def compute_dtype(patcher: Any) -> torch.dtype:
    """Return the dtype that a MODEL computes in, one that a node has asked for included."""
    return patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()


def require_stage(config: UNetConfig, stage: str | tuple[str, ...], node_input: str) -> None:
    """Refuse a U-Net of another stage in words."""
    stages = (stage,) if isinstance(stage, str) else stage
    if config.stage not in stages:
        fills = "FusionFrames Interpolate or FusionFrames Masked Interpolate"
        use = {"keyframe": "FusionFrames Keyframe Sampler or KSampler", "interpolation": fills, "masked": fills}
        raise InputError(
            f"{node_input} expected the {stages[0]} U-Net, got the {config.stage} U-Net of release {config.family}: "
            f"connect that one to {use[config.stage]}"
        )
