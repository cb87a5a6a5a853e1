"""The operations that the networks and the sampler are made of.

Each has a formula in ``eager`` (the specification) and may have faster implementations in ``cpu`` and ``triton``; the
registry picks one per call.
"""

from . import cpu  # noqa: F401 (registers its implementations)
from .algebra import exact, rounded
from .attention import attend, attend_over_time
from .conv import nearest_conv, nearest_kernels, residual_conv, winograd_conv, winograd_taps
from .eager.norm import modulate_by_maps
from .eager.step import clip_to_quantile, clip_to_range, mix_branches
from .linear import linear
from .norm import group_norm_mod, spatial_norm_act
from .step import Coefficients, sample_step
from .temporal_conv import temporal_conv_class

__all__ = [
    "Coefficients",
    "attend",
    "attend_over_time",
    "clip_to_quantile",
    "clip_to_range",
    "exact",
    "group_norm_mod",
    "linear",
    "mix_branches",
    "modulate_by_maps",
    "nearest_conv",
    "nearest_kernels",
    "residual_conv",
    "rounded",
    "sample_step",
    "spatial_norm_act",
    "temporal_conv_class",
    "winograd_conv",
    "winograd_taps",
]
