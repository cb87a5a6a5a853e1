"""Tables of a run in core's samplers: made once, right, and gone with the run."""

import gc
import weakref

import pytest
import torch

STEPS = 4


@pytest.fixture
def prepared(demo, monkeypatch):
    """Number of timesteps of every call of ``prepare``."""
    network, calls = demo.model.model.diffusion_model, []
    prepare = type(network).prepare

    def counting(context, mask, timesteps, **options):
        calls.append(tuple(timesteps.shape))
        return prepare(network, context, mask, timesteps, **options)

    monkeypatch.setattr(network, "prepare", counting, raising=False)
    return calls


def ksampler(core, model, prompts, latent, sampler="euler", seed=1):
    sample = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]().sample
    return sample(model, seed, STEPS, 3.0, sampler, "normal", *prompts, latent, 1.0)[0]["samples"]


def without_tables(core, demo):
    plain = demo.model.clone()
    tables = core.module("nodes.adapters.tables")
    plain.remove_wrappers_with_key("sampler_sample", tables.TABLES)
    return plain


def test_tables_are_made_once_per_run_and_change_nothing(core, demo, prompts, latent, prepared):
    with_tables = ksampler(core, demo.model, prompts, latent)
    per_run = list(prepared)
    assert per_run
    # One call for each batch of conditionings, however many steps there are; core may run them apart.
    assert len(per_run) <= 2
    assert all(shape == (STEPS,) for shape in per_run)
    ksampler(core, demo.model, prompts, latent)
    assert len(prepared) == 2 * len(per_run)
    prepared.clear()
    plain = ksampler(core, without_tables(core, demo), prompts, latent)
    assert len(prepared) == STEPS * len(per_run)
    assert (plain - with_tables).abs().max() < 1e-4


@pytest.mark.parametrize("sampler", ["dpm_2", "heun", "dpmpp_sde", "uni_pc"])
def test_samplers_with_steps_between_the_steps_agree(core, demo, prompts, latent, sampler):
    with_tables = ksampler(core, demo.model, prompts, latent, sampler)
    plain = ksampler(core, without_tables(core, demo), prompts, latent, sampler)
    # Steps on the border of the clipping carry rounding on, hence the mean error and not the largest.
    assert (plain - with_tables).norm() < 1e-3 * plain.norm()


def test_another_prompt_gets_tables_of_its_own(core, demo, prompts, latent):
    swapped = ksampler(core, demo.model, prompts[::-1], latent)
    straight = ksampler(core, demo.model, prompts, latent)
    assert (ksampler(core, demo.model, prompts[::-1], latent) - swapped).abs().max() == 0
    assert (swapped - straight).abs().max() > 1e-2


def test_tables_end_with_the_run(core, demo, prompts, latent, monkeypatch):
    tables, made = core.module("nodes.adapters.tables"), []
    start = tables.RunTables.__init__

    def remembered(self, *args):
        made.append(weakref.ref(self))
        start(self, *args)

    monkeypatch.setattr(tables.RunTables, "__init__", remembered)
    ksampler(core, demo.model, prompts, latent)
    gc.collect()
    assert len(made) == 1
    assert made[0]() is None


def test_timesteps_of_a_batch_that_differ_are_worked_out_alone(core):
    tables = core.module("nodes.adapters.tables").RunTables(torch.tensor([980.0, 500.0, 500.0, 0.0]))
    asked = []

    def prepare(timesteps):
        asked.append(timesteps.tolist())
        return object()

    text = torch.ones(2, 3)
    first, place = tables.find(torch.tensor([500.0, 500.0]), (text, None, 5), prepare)
    assert place == 1
    assert tables.find(torch.tensor([0.0, 0.0]), (text.clone(), None, 5), prepare) == (first, 2)
    assert tables.find(torch.tensor([0.0, 0.0]), (text, None, 6), prepare)[0] is not first
    assert tables.find(torch.tensor([0.0, 0.0]), (text + 1, None, 5), prepare)[0] is not first
    assert tables.find(torch.tensor([0.0, 500.0]), (text, None, 5), prepare)[1] == 0
    assert tables.find(torch.tensor([77.0, 77.0]), (text, None, 5), prepare)[1] == 0
    assert asked == [[980.0, 500.0, 0.0]] * 3 + [[[0.0, 500.0]], [[77.0, 77.0]]]
