"""The shipped demo model as a pipeline."""

from typing import Any

from ..checkpoints.folder import find_models
from ..pipeline.pipeline import Pipeline
from ..pipeline.settings import Settings
from . import WEIGHTS

# At 0.2, 0.5, 1 and 2 all of 64 captions were drawn as they say, as the captions are learnt well without guidance.
# From 0.5 on small shapes get holes, at 2 outlines fray.
DEFAULTS = Settings(fps="high", width=64, height=64, guidance_scale=0.2)


def demo_pipeline(**options: Any) -> Pipeline:
    """Open the shipped weights; options as in ``Pipeline``."""
    return Pipeline(find_models(WEIGHTS), defaults=DEFAULTS, **options)
