"""The only import of ComfyUI's node API; the dated module keeps later changes of ``latest`` away."""

from comfy_api.v0_0_2 import ComfyExtension, io, ui

__all__ = ["ComfyExtension", "io", "ui"]
