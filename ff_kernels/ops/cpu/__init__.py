"""Implementations for processors: the formulas with fewer passes over memory."""

from . import linear, norm

__all__ = ["linear", "norm"]
