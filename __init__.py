"""FusionFrames (arXiv 2311.13073) for ComfyUI: nodes are in ``nodes``, the engine they call is ``ff_kernels``."""

import importlib.util

WEB_DIRECTORY = "./nodes/web"

# Without a package name this is pytest collecting the folder; without ComfyUI the engine works alone.
if __package__ and importlib.util.find_spec("comfy_api") is not None:
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
