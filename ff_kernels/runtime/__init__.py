"""How a stage runs on a device: memory budgets, weights that wait elsewhere, recorded steps."""
