"""FusionFrames: two-stage latent text-to-video (arXiv 2311.13073), releases Kandinsky Video 1.0 and 1.1.

``Pipeline`` and ``Settings`` bring torch in when they are first asked for, not when the package is imported.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline.pipeline import Pipeline
    from .pipeline.settings import Settings

__all__ = ["Pipeline", "Settings", "__version__", "load"]
__version__ = "0.2.0"

_HOMES = {"Pipeline": ".pipeline.pipeline", "Settings": ".pipeline.settings"}


def load(folder: str | Path | None = None, **options: Any) -> "Pipeline":
    """Open a folder of released or converted weights, by default the shipped demo model; options as in ``Pipeline``.

    Raises:
        InputError: if there is no such folder.
        CheckpointError: if a file of it is damaged, missing or there twice.
    """
    from .demo.model import demo_pipeline
    from .pipeline.pipeline import Pipeline

    return demo_pipeline(**options) if folder is None else Pipeline.from_folder(folder, **options)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name], __name__), name)
