"""LoRA files: what is read, what merging does to the weights, and what is refused."""
