"""Implementations in Triton, for CUDA devices and, in tests, for Triton's interpreter.

The registry imports this package when it is first asked for; nothing else may, since it needs Triton.
"""

from . import attention, linear, norm, step
from ._runtime import missing_device

__all__ = ["attention", "linear", "missing_device", "norm", "step"]
