"""The paper's comparisons at demo scale: temporal variants, interpolation against its baseline, nine decoders."""

from pathlib import Path

# What the repository keeps of the runs that README shows: one JSON and the plots.
RESULTS = Path(__file__).parent / "results"
