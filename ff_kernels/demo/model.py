"""The shipped demo model as a pipeline."""

from typing import Any

from ..model_files import find_models
from ..pipeline import Pipeline
from ..settings import Settings
from . import WEIGHTS

# The guidance of README's table; other scales were not compared.
DEFAULTS = Settings(fps="high", width=64, height=64, guidance_scale=2.0)


def demo_pipeline(**options: Any) -> Pipeline:
    """Open the shipped weights; options as in ``Pipeline``."""
    return Pipeline(find_models(WEIGHTS), defaults=DEFAULTS, **options)
