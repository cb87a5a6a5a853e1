"""Short graphs in the real core: each function is a chain of its nodes or of ours."""

import inspect

STEPS = 4


def ksampler(core, model, prompts, latent, steps=STEPS):
    sample = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]().sample
    return sample(model, 3, steps, 1.2, "ddpm", "normal", *prompts, latent, 1.0)[0]["samples"]


def keyframes(core, model, prompts, latent, steps=STEPS):
    return core.run(
        "FusionFramesKeyframeSampler", model=model, positive=prompts[0], negative=prompts[1], latent=latent, seed=3,
        steps=steps, guidance_scale=0.2,
    )[0]["samples"]  # fmt: skip


def interpolated(core, model, latent, steps=STEPS):
    return core.run("FusionFramesInterpolate", model=model, latent=latent, seed=3, steps=steps)[0]["samples"]


def patched(core, file, name, model, *args):
    """MODEL of a node of core's extra nodes, in either style that core writes nodes in."""
    cls = core.extra(file, name)
    out = cls.execute(model, *args) if hasattr(cls, "execute") else getattr(cls(), cls.FUNCTION)(model, *args)
    return getattr(out, "args", out)[0]


def windowed(core, model, length, overlap):
    """MODEL with context windows of ``length`` frames; newer cores would put a frame before each of them."""
    execute = core.extra("nodes_context_windows", "ContextWindowsManualNode").execute
    newer = {"causal_window_fix": False} if "causal_window_fix" in inspect.signature(execute).parameters else {}
    return execute(model, length, overlap, "standard_static", 1, False, "pyramid", 2, False, **newer).args[0]
