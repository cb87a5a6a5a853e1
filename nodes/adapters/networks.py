"""The U-Nets in core's care: the call that core makes, and the one of the engine's samplers."""

import uuid
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...ff_kernels.models.conditions import Conditions
from ...ff_kernels.models.configs import UNetConfig
from ...ff_kernels.models.interpolation_unet import InterpolationUNet
from ...ff_kernels.models.keyframe_unet import KeyframeUNet, keyframe_positions
from ...ff_kernels.models.masked_unet import MaskedUNet
from ...ff_kernels.models.unet import UNet
from ...ff_kernels.models.unets import UNETS
from .._compat import CALC_COND_BATCH, DIFFUSION_MODEL, run_attention, run_wrapped
from .conditioner import Conditioner
from .folded import list_released
from .latent import CHANNELS
from .patches import hooks_of
from .tables import TABLES
from .training import refuse_bypass


class _InCore:
    """A U-Net that knows its dtype, which core asks it for, and lists all its weights, which core saves."""

    conditioner: Conditioner | None = None
    # The file's tensors of a folded network, whose own are not the release's.
    released: dict[str, Tensor] | None = None

    def __init__(
        self,
        config: UNetConfig,
        *,
        dtype: torch.dtype,
        device: Any = None,
        operations: Any = None,
        model_channels: int | None = None,
    ) -> None:
        super().__init__(config, operations=operations, device=device, dtype=dtype)
        self.dtype = dtype

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the weights under the names of the release, the conditioner's among them."""
        if self.released is not None:
            return list_released(self.released, *args, **kwargs)
        out = super().state_dict(*args, **kwargs)
        if self.conditioner is not None:
            if not args:
                kwargs["destination"] = out
            self.conditioner.diffusion_model.state_dict(*args, **kwargs)
        return out


class CoreKeyframeUNet(_InCore, KeyframeUNet):
    """Keyframe U-Net with the call core makes; ``EngineView`` gives the call our own samplers make."""

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        **conditions: Any,
    ) -> Tensor:
        """Predict through core's wrappers of a network, which want these arguments in this order; see ``predict``."""
        options = {} if transformer_options is None else transformer_options
        call = (x, timesteps, context, y, control, options)
        return run_wrapped(self.predict, self, DIFFUSION_MODEL, options, *call, **conditions)

    def predict(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        *,
        context_mask: Tensor,
        first_frame: Tensor | None = None,
        noise_level: Tensor | None = None,
        motion_score: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Predict the noise of ``[B, 4, T, h, w]``; ``first_frame`` is ``[B, 5, T, h, w]``, image and mask."""
        refuse_bypass(self)
        B, _, T = x.shape[:3]
        is_video = self.config.family == "1.0" or T > 1 or first_frame is not None

        def prepare(timesteps: Tensor) -> Conditions:
            return self.prepare(
                context,
                context_mask,
                timesteps,
                positions=keyframe_positions(self.config.family, T) if is_video else None,
                keyframes=T if is_video else 1,
                noise_level=noise_level,
                motion_score=motion_score,
            )

        options = transformer_options or {}
        tables = options.get(TABLES)
        if tables is not None:
            timesteps = tables.tell(timesteps, options.get("sigmas"))
        if tables is None:
            conditions, step = prepare(timesteps[None]), 0
        else:
            inputs = (context, context_mask, noise_level, motion_score, T, int(is_video))
            conditions, step = tables.find(timesteps, inputs, prepare)
        extra = self.config.num_channels - x.shape[1]
        if extra:
            x = torch.cat([x, x.new_zeros(B, extra, *x.shape[2:]) if first_frame is None else first_frame], dim=1)
        frames = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        hooks = hooks_of(options, self.config, context, context_mask, run_attention)
        out = KeyframeUNet.forward(self, frames, conditions, step, hooks)
        return out.unflatten(0, (B, T)).transpose(1, 2)


class CoreInterpolationUNet(_InCore, InterpolationUNet):
    """Interpolation U-Net in core's care; only our own sampler calls it, gap by gap."""


class CoreMaskedUNet(_InCore, MaskedUNet):
    """Masked-frame U-Net in core's care; only our own sampler calls it, gap by gap."""


# The U-Net of a stage in core's care; ``UNETS`` are the engine's own.
NETWORKS = {"keyframe": CoreKeyframeUNet, "interpolation": CoreInterpolationUNet, "masked": CoreMaskedUNet}


class EngineView:
    """A U-Net in core's care with the call of the engine's samplers.

    Attributes:
        hung: the run of core's that the calls belong to, None where nothing hangs on the MODEL.
    """

    def __init__(self, unet: UNet) -> None:
        self.config, self._unet = unet.config, unet
        self.hung: HungRun | None = None
        # What is hung on the attention to the text wants the text itself.
        self._texts: list[tuple[Conditions, Tensor, Tensor]] = []

    def prepare(self, context: Tensor, context_mask: Tensor, timesteps: Tensor, **options: Any) -> Conditions:
        """Work out conditions; see the network's own."""
        conditions = self._unet.prepare(context, context_mask, timesteps, **options)
        self._texts.append((conditions, context, context_mask))
        return conditions

    def __call__(self, x: Tensor, conditions: Conditions, step: int = 0) -> Tensor:
        """Predict; see ``UNet.forward``."""
        network = UNETS[self.config.stage]
        if self.hung is None:
            return network.forward(self._unet, x, conditions, step)

        text = next((context, mask) for known, context, mask in self._texts if known is conditions)

        def predict(x: Tensor, options: dict[str, Any]) -> Tensor:
            hooks = hooks_of(options, self.config, *text, run_attention)
            return network.forward(self._unet, x, conditions, step, hooks)

        return self.hung.predict(self._unet, x, step, len(text[0]), predict)


class HungRun:
    """Core's wrappers around the calls of an engine's stage that fills gaps.

    Args:
        model: core's model, for wrappers that look at it.
        model_options: core's options of the run.
        sigmas: ``[S + 1]`` noise levels, in core's units.
        clips: B.
    """

    def __init__(self, model: Any, model_options: dict[str, Any], sigmas: Tensor, *, clips: int) -> None:
        self._model, self._options, self._sigmas, self._clips = model, model_options, sigmas, clips
        # Names of the two branches, the text's and the other, for what is kept between steps.
        self._uuids = [uuid.uuid4(), uuid.uuid4()]

    def predict(
        self, unet: UNet, x: Tensor, step: int, rows: int, predict: Callable[[Tensor, dict[str, Any]], Tensor]
    ) -> Tensor:
        """Predict ``[N, C', h, w]`` of ``[N, C, h, w]``, one branch or both, of ``rows`` clips together.

        Wrappers are shown what is denoised as a video latent ``[rows, 4, frames, h, w]``, as of any other network.
        """
        count = rows // self._clips
        start = 0 if unet.config.stage == "masked" else unet.config.latent_channels
        stop = start + unet.config.out_channels
        sigma = self._sigmas[step].reshape(1)
        told = {"sigmas": sigma, "cond_or_uncond": list(range(count)), "uuids": self._uuids[:count]}
        options = {**self._options, "transformer_options": {**self._options["transformer_options"], **told}}

        def forward(video: Tensor, timesteps: Tensor, context: Any, y: Any, control: Any, inner: Any) -> Tensor:
            frames = gaps_of(video, unet.config.out_channels).to(x)
            return video_of(predict(torch.cat([x[:, :start], frames, x[:, stop:]], dim=1), inner), rows)

        def branches(model: Any, conds: Any, video: Tensor, timestep: Tensor, options: dict[str, Any]) -> list[Tensor]:
            inner = options["transformer_options"]
            call = (video, timestep.expand(len(video)), None, None, None, inner)
            return list(run_wrapped(forward, unet, DIFFUSION_MODEL, inner, *call).chunk(count))

        video = video_of(x[:, start:stop], rows)
        call = (self._model, [[]] * count, video, sigma, options)
        out = run_wrapped(branches, None, CALC_COND_BATCH, options["transformer_options"], *call)
        return gaps_of(torch.cat(out), unet.config.out_channels)


def video_of(gaps: Tensor, rows: int) -> Tensor:
    """View ``[rows * n, k * 4, h, w]`` as a video latent ``[rows, 4, n * k, h, w]``."""
    return gaps.unflatten(1, (-1, CHANNELS)).unflatten(0, (rows, -1)).flatten(1, 2).transpose(1, 2)


def gaps_of(video: Tensor, channels: int) -> Tensor:
    """Undo ``video_of``, for samples of ``channels`` channels."""
    return video.transpose(1, 2).unflatten(1, (-1, channels // CHANNELS)).flatten(0, 1).flatten(1, 2)
