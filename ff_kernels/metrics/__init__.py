"""Metrics of clips: fidelity to a reference, distances of sets of clips, steadiness over time, with intervals."""
