"""Short graphs in the real core: each function is a chain of its nodes or of ours."""

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
