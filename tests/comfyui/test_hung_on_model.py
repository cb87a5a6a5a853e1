"""What core's nodes hang on a MODEL: caches, patches and guidance, in KSampler and in our own samplers."""

import importlib

import pytest
import torch
from support.graphs import STEPS, interpolated, keyframes, ksampler, patched

PATCHES = {
    "FreeU": ("nodes_freelunch", 1.1, 1.2, 0.9, 0.2),
    "FreeU_V2": ("nodes_freelunch", 1.3, 1.4, 0.9, 0.2),
    "SelfAttentionGuidance": ("nodes_sag", 0.5, 2.0),
    "PerturbedAttentionGuidance": ("nodes_pag", 3.0),
    "NAGuidance": ("nodes_nag", 5.0, 0.5, 1.5),
    "HyperTile": ("nodes_hypertile", 1, 2, 1, False),
    "TomePatchModel": ("nodes_tomesd", 0.3),
    "PatchModelAddDownscale": ("nodes_model_downscale", 3, 2.0, 0.0, 0.9, True, "bicubic", "bicubic"),
}


@pytest.fixture(scope="module")
def plain(core, demo, prompts):
    latent = core.run("FusionFramesEmptyLatent", preset="64 x 64, demo", keyframes=5)[0]
    own = keyframes(core, demo.model, prompts, latent)
    return latent, {ksampler: ksampler(core, demo.model, prompts, latent), keyframes: own}


@pytest.mark.parametrize("run", [ksampler, keyframes])
@pytest.mark.parametrize("name", PATCHES)
def test_patch_changes_the_clip_and_leaves_nothing_behind(core, demo, prompts, plain, name, run):
    file, *args = PATCHES[name]
    try:
        model = patched(core, file, name, demo.model, *args)
    except AttributeError:
        pytest.skip(f"this core has no {name}")
    latent, before = plain
    changed = run(core, model, prompts, latent)
    assert torch.isfinite(changed).all()
    assert (changed - before[run]).abs().max() > 1e-3
    assert torch.equal(run(core, demo.model, prompts, latent), before[run])


def test_our_sampler_goes_through_core_to_the_same_clip(core, demo, prompts, plain):
    latent, before = plain
    model = demo.model.clone()
    model.set_model_input_block_patch(lambda h, options: h)
    assert (keyframes(core, model, prompts, latent) - before[keyframes]).abs().max() < 1e-4


def count_forwards(model, run):
    calls = []
    hook = model.model.diffusion_model.in_layer.register_forward_hook(lambda *_: calls.append(1))
    try:
        run()
    finally:
        hook.remove()
    return len(calls)


@pytest.mark.parametrize("run", [ksampler, keyframes])
def test_easy_cache_skips_steps(core, demo, prompts, plain, run):
    model = patched(core, "nodes_easycache", "EasyCacheNode", demo.model, 0.5, 0.15, 0.95, False)
    assert count_forwards(model, lambda: run(core, model, prompts, plain[0], steps=30)) < 28


def test_easy_cache_skips_steps_of_the_interpolation(core, demo, plain):
    frames = {"samples": plain[1][keyframes]}
    model = patched(core, "nodes_easycache", "EasyCacheNode", demo.interpolation, 0.5, 0.15, 0.95, False)
    assert count_forwards(model, lambda: interpolated(core, model, frames, steps=30)) < 28
    idle = patched(core, "nodes_easycache", "EasyCacheNode", demo.interpolation, 0.0, 0.15, 0.95, False)
    same = interpolated(core, demo.interpolation, frames)
    assert (interpolated(core, idle, frames) - same).abs().max() < 1e-4


def test_a_wrapper_of_the_network_is_called_as_core_s_networks_call_it(core, demo, prompts, plain):
    seen = []

    def wrapper(executor, x, timesteps, context, y, control, options, **conditions):
        seen.append((tuple(x.shape), y, control, sorted(options["cond_or_uncond"])))
        return executor(x, timesteps, context, y, control, options, **conditions) * 0.9

    extension = importlib.import_module("comfy.patcher_extension")
    model = demo.model.clone()
    model.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    latent, before = plain
    assert (ksampler(core, model, prompts, latent) - before[ksampler]).abs().max() > 1e-3
    assert seen == [((2, 4, 5, 16, 16), None, None, [0, 1])] * STEPS


def test_what_nobody_reads_is_said_on_the_node(core, demo, prompts, plain, caplog):
    model = demo.model.clone()
    model.set_model_patch(lambda *_: None, "double_block")
    latent, before = plain
    assert torch.equal(ksampler(core, model, prompts, latent), before[ksampler])
    said = [record.getMessage() for record in caplog.records if "do not read" in record.getMessage()]
    assert said == ["FusionFrames U-Nets do not read: double_block patch; the result is the same without"]


def test_guidance_that_skips_layers_of_another_network_is_said(core, demo, prompts, plain, caplog):
    model = patched(core, "nodes_slg", "SkipLayerGuidanceDiT", demo.model, 3.0, 0.0, 1.0, "0", "0", 0.0)
    ksampler(core, model, prompts, plain[0])
    said = [record.getMessage() for record in caplog.records if "do not read: dit replacement;" in record.getMessage()]
    assert len(said) == 1


def test_the_interpolation_says_that_it_mixes_branches_by_itself(core, demo, plain, caplog):
    model = demo.interpolation.clone()
    model.set_model_sampler_cfg_function(lambda args: args["cond"])
    interpolated(core, model, {"samples": plain[1][keyframes]})
    assert any("do not read: guidance function;" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("dtype", "most"), [("fp16", 0.1), ("bf16", 0.6)])
def test_compute_dtype_is_that_of_every_sampler_and_of_no_other_graph(core, demo, prompts, plain, dtype, most):
    latent, before = plain
    frames = {"samples": before[keyframes]}
    runs = {
        "KSampler": (demo.model, lambda model: ksampler(core, model, prompts, latent)),
        "Keyframe Sampler": (demo.model, lambda model: keyframes(core, model, prompts, latent)),
        "Interpolate": (demo.interpolation, lambda model: interpolated(core, model, frames)),
    }
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for name, (own, run) in runs.items():
        exact, seen = run(own), set()
        model = patched(core, "nodes_model_advanced", "ModelComputeDtype", own, dtype)
        layer = own.model.diffusion_model.down_samples[0].resnet_attn_blocks[0][0].resnet_blocks[1].projection
        hook = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.add(args[0].dtype))
        try:
            near = run(model)
        finally:
            hook.remove()
        assert seen == {wanted}, name
        assert (near - exact).pow(2).mean().sqrt() < most * exact.std(), name
        assert torch.equal(run(own), exact), name


@pytest.mark.parametrize("steps", [8, 50])
def test_schedule_and_ddpm_nodes_tell_the_released_times_at_any_number_of_steps(core, demo, prompts, plain, steps):
    (sigmas,) = core.run("FusionFramesSchedule", model=demo.model, steps=steps)
    told = []
    network = demo.model.model.diffusion_model
    prepare = network.prepare

    def spy(context, mask, timesteps, **options):
        told.append(timesteps.flatten().tolist())
        return prepare(context, mask, timesteps, **options)

    network.prepare = spy
    try:
        guider = importlib.import_module("comfy.samplers").CFGGuider(demo.model)
        guider.set_conds(*prompts)
        (sampler,) = core.run("FusionFramesDDPM")
        guider.sample(torch.randn(1, 4, 5, 16, 16), plain[0]["samples"], sampler, sigmas, seed=3)
    finally:
        del network.prepare
    assert told[0] == list(range((steps - 1) * (1000 // steps), -1, -(1000 // steps)))


def test_conditioning_limited_in_time_is_so_in_our_sampler(core, demo, prompts, plain):
    cls = core.nodes.NODE_CLASS_MAPPINGS["ConditioningSetTimestepRange"]
    (early,) = cls().set_range(prompts[0], 0.0, 0.5)
    latent, before = plain
    assert (keyframes(core, demo.model, (early, prompts[1]), latent) - before[keyframes]).abs().max() > 1e-3
