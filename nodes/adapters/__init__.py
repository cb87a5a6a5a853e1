"""The engine's networks as core's own types: MODEL, CLIP, VAE, GUIDER, SAMPLER; no nodes and no formulas here."""
