"""Measuring: the release's own formulation, named workloads, and a run of both sides in turn."""
