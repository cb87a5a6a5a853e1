"""Presets and solvers in the nodes: the frames of the command line, and those of core's own samplers."""

import pytest
import torch
from support.core_start import start_noise

from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings

SEED = 7


@pytest.fixture(scope="module")
def pipeline():
    return demo_pipeline()


def sample(core, demo, prompts, latent, **options):
    return core.run(
        "FusionFramesKeyframeSampler",
        model=demo.model, positive=prompts[0], negative=prompts[1], latent=latent, seed=SEED, guidance_scale=2.0,
        **options,
    )[0]["samples"]  # fmt: skip


def expected_keyframes(pipeline, **options):
    settings = pipeline.resolve(Settings(fps="medium", seed=SEED, guidance_scale=2.0, **options))
    return pipeline.sample_keyframes(pipeline.encode_text(["a large red circle moves up"]), settings), settings


@pytest.mark.parametrize(
    ("widgets", "options"),
    [
        ({"preset": "fast", "steps": 50}, {"preset": "fast"}),
        ({"preset": "balanced"}, {"preset": "balanced"}),
        ({"solver": "ddim", "steps": 4}, {"solver": "ddim", "steps": 4}),
    ],
    ids=["preset_brings_its_own_steps", "balanced", "single_inputs"],
)
def test_graph_gives_the_frames_of_the_command_line(core, demo, prompts, latent, pipeline, widgets, options):
    keyframes = sample(core, demo, prompts, latent, **widgets)
    expected, settings = expected_keyframes(pipeline, **options)
    assert (keyframes - expected.transpose(1, 2)).abs().max() < 1e-4
    video, _ = core.run(
        "FusionFramesInterpolate", model=demo.interpolation, latent={"samples": keyframes}, seed=SEED, passes=1,
        **{"steps": settings.interpolation_steps, **{"preset": widgets.get("preset", "custom")}},
    )  # fmt: skip
    video = video["samples"].transpose(1, 2)
    assert (video - pipeline.interpolate(expected, settings, passes=1)).abs().max() < 1e-3


def test_cores_second_order_sampler_agrees_through_the_schedule_of_a_preset(core, demo, prompts, latent):
    samplers = __import__("comfy.samplers", fromlist=["CFGGuider"])
    guider = samplers.CFGGuider(demo.model)
    guider.set_conds(*prompts)
    guider.set_cfg(3.0)
    (sigmas,) = core.run("FusionFramesSchedule", model=demo.model, preset="balanced")
    # An empty latent has no signal: core starts from sigma times the noise, we from noise of the size of a noisy clip.
    noise = start_noise(core, latent["samples"].shape, SEED) * (1 + sigmas[0] ** -2).sqrt()
    out = guider.sample(noise, latent["samples"], samplers.sampler_object("dpmpp_2m"), sigmas, seed=SEED)
    expected = sample(core, demo, prompts, latent, preset="balanced")
    assert (out - expected).abs().max() < 1e-3


def test_schedule_tells_the_network_the_times_of_its_levels(core, demo, pipeline):
    (sigmas,) = core.run("FusionFramesSchedule", model=demo.model, steps=10, solver="ddpm")
    told = demo.model.get_model_object("model_sampling").timestep(sigmas[:-1])
    assert told.tolist() == list(range(980, 0, -100))


@pytest.mark.parametrize("name", ["preset", "solver"])
def test_unknown_name_through_a_link_is_refused(core, demo, prompts, latent, name):
    with pytest.raises(Exception, match=f"expected a {name}, got 'turbo': choose from"):
        sample(core, demo, prompts, latent, steps=2, **{name: "turbo"})


def test_few_steps_of_the_released_formula_are_logged(core, demo, prompts, latent, caplog):
    sample(core, demo, prompts, latent, steps=2)
    assert "falls apart with 2 steps" in caplog.text


def test_a_batch_is_the_clips_of_its_seeds(core, demo, prompts, latent):
    pair = {"samples": torch.zeros(2, *latent["samples"].shape[1:])}
    both = sample(core, demo, prompts, pair, preset="fast")
    assert torch.allclose(both[:1], sample(core, demo, prompts, latent, preset="fast"), atol=1e-4)
