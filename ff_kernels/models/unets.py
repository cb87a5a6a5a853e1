"""The U-Net of every stage."""

from .interpolation_unet import InterpolationUNet
from .keyframe_unet import KeyframeUNet
from .masked_unet import MaskedUNet
from .unet import UNet

UNETS: dict[str, type[UNet]] = {"keyframe": KeyframeUNet, "interpolation": InterpolationUNet, "masked": MaskedUNet}
