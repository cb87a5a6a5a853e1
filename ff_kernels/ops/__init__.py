"""The operations that the networks are made of, each with its formula; torch only, any device and dtype."""

from .attention import attend, attend_over_time
from .norm import group_norm_mod, spatial_norm
from .temporal import temporal_conv_class

__all__ = ["attend", "attend_over_time", "group_norm_mod", "spatial_norm", "temporal_conv_class"]
