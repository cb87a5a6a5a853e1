"""Implementations for processors: the formulas with fewer passes over memory."""

from . import conv, linear, norm

__all__ = ["conv", "linear", "norm"]
