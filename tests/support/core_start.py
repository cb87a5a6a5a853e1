"""The start of a run in core, as the engine draws it."""


def start_noise(core, shape, seed):
    """The start that the engine draws for a seed, in core's layout."""
    noise = core.module("ff_kernels.sampling.noise")
    B, C, T, h, w = shape
    source = noise.SeededNoise(noise.stage_seeds(seed, B, noise.KEYFRAMES))
    return source.normal((B * T, C, h, w)).unflatten(0, (B, T)).transpose(1, 2).contiguous()
