"""The demo model: a tiny 1.0 family trained on procedural clips, its training, evaluation and weights."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
