"""What core's training nodes need of our MODEL: an estimate whose error weighs as that of the noise."""

from torch import Tensor, nn

from ...ff_kernels.errors import InputError
from ...ff_kernels.models.temporal_blocks import is_temporal

# Errors of the noise weigh as 1 / alpha_bar up to this, as the demo model was trained.
MAX_WEIGHT = 10.0


def weigh_for_training(denoised: Tensor, sigma: Tensor) -> Tensor:
    """Return an estimate as it is, with the gradient that makes a loss on it one on the predicted noise.

    Core's node takes the error of the estimated clip, which is the noise's times sigma: of sigmas from 0.04 to 1015
    only the noisiest would count. The gradient is scaled by ``min(1 + sigma^2, MAX_WEIGHT) / sigma^2``.

    Args:
        denoised: ``[B, 4, T, h, w]`` with a gradient, not clipped: a clipped estimate has none where it was cut.
        sigma: ``[B]`` noise levels.
    """
    square = sigma.to(denoised).square().reshape(-1, *(1 for _ in denoised.shape[1:]))
    fixed = denoised.detach()
    return fixed + (1 + square).clamp(max=MAX_WEIGHT) / square * (denoised - fixed)


def refuse_bypass(network: nn.Module) -> None:
    """Refuse a LoRA that runs beside our layers over time: core would take their clips for volumes.

    Raises:
        InputError: if a layer's ``forward`` was replaced by one that is not core's gradient checkpointing.
    """
    for name, module in network.named_modules():
        if not (isinstance(module, nn.Conv3d) and is_temporal(name)) or hasattr(module, "org_forward"):
            continue
        # What core took from a layer it gives back as an attribute: the class's own method is no replacement.
        if getattr(module.forward, "__func__", None) is not type(module).forward:
            raise InputError(
                "expected a LoRA that is added to the weights, got one in bypass mode, which cannot run beside "
                "FusionFrames' layers over time: switch bypass off"
            )
