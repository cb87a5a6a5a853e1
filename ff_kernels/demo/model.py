"""The shipped demo model as a pipeline."""

from typing import Any

from ..checkpoints.folder import find_models
from ..pipeline.pipeline import Pipeline
from ..pipeline.settings import Settings
from ..stages.releases import DEMO_GUIDANCE_SCALE
from . import WEIGHTS

DEFAULTS = Settings(fps="high", width=64, height=64, guidance_scale=DEMO_GUIDANCE_SCALE)


def demo_pipeline(**options: Any) -> Pipeline:
    """Open the shipped weights; options as in ``Pipeline``."""
    return Pipeline(find_models(WEIGHTS), defaults=DEFAULTS, **options)
