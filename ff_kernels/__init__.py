"""FusionFrames: two-stage latent text-to-video (arXiv 2311.13073), releases Kandinsky Video 1.0 and 1.1.

README.md beside this file is the house in one page. The names below are looked up when they are first asked for, so
that neither ComfyUI nor a help page waits for libraries it does not use.
"""

import importlib
from typing import Any

__version__ = "0.3.0"
_HOMES = {
    "Pipeline": ".pipeline.pipeline",
    "Settings": ".pipeline.settings",
    "demo_pipeline": ".demo.model",
    "load": ".checkpoints.loading",
    "write_frames": ".media.video",
}
__all__ = ["Pipeline", "Settings", "__version__", "demo_pipeline", "load", "write_frames"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
