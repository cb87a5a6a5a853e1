"""Schedules, guidance and the step loop; a network is known here only as ``predict(x, step) -> Tensor``."""
