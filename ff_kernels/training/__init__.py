"""Training: the loop, the losses of the paper, start values of parts over time."""
