"""The weights that only ``prepare`` reads, in a patcher of their own."""

import importlib
from types import SimpleNamespace

import pytest
import torch

STEPS = 3


def keyframes(core, model, prompts, latent):
    return core.run(
        "FusionFramesKeyframeSampler", model=model, positive=prompts[0], negative=prompts[1], latent=latent, seed=7,
        steps=STEPS, guidance_scale=2.0,
    )[0]["samples"]  # fmt: skip


def ksampler(core, model, prompts, latent):
    sample = core.nodes.NODE_CLASS_MAPPINGS["KSampler"]().sample
    return sample(model, 7, STEPS, 3.0, "euler", "normal", *prompts, latent, 1.0)[0]["samples"]


def value_key(model):
    names = model.model.conditioner.state_dict()
    return next(name for name in names if name.endswith(".to_value.weight") and "feature_pooling" not in name)


def with_lora(model, strength):
    """A clone with a LoRA on one weight of its conditioner."""
    key, patched = value_key(model), model.clone()
    assert patched.add_patches({key: (torch.ones_like(model.model.state_dict()[key]),)}, strength) == [key]
    return patched


def merged_weight(model):
    """What core's merging nodes take for a MODEL's weight."""
    key = value_key(model)
    return model.get_key_patches("diffusion_model.")[key][0][0].clone()


@pytest.fixture
def management(core):
    return importlib.import_module("comfy.model_management")


@pytest.fixture
def adapter(core):
    return core.module("nodes.adapters.conditioner")


def test_every_weight_is_in_one_patcher_and_all_names_are_the_release_s(core, demo, adapter):
    for patcher in (demo.model, demo.interpolation):
        own = adapter.conditioner_of(patcher)
        parts = [{id(p): p.nbytes for p in model.parameters()} for model in (patcher.model.diffusion_model, own.model)]
        assert parts[0]
        assert parts[1]
        assert not parts[0].keys() & parts[1].keys()
        assert patcher.model_size() == sum(parts[0].values())
        assert own.model_size() == sum(parts[1].values())
        network = type(patcher.model.diffusion_model).__mro__[2](patcher.model.network_config, device="meta")
        named = {name.removeprefix("diffusion_model.") for name in patcher.model.state_dict()}
        assert {name for name in named if not name.startswith("model_sampling")} == set(network.state_dict())


def test_core_loads_the_conditioner_for_a_run(core, demo, prompts, latent, adapter):
    management = __import__("comfy.model_management", fromlist=["current_loaded_models"])
    management.unload_all_models()
    for run in (keyframes, ksampler):
        run(core, demo.model, prompts, latent)
        loaded = [entry.model.model for entry in management.current_loaded_models]
        assert demo.model.model in loaded
        assert demo.model.model.conditioner in loaded
        management.unload_all_models()


def test_conditioner_may_be_evicted_between_runs(core, demo, prompts, latent, adapter):
    management = __import__("comfy.model_management", fromlist=["current_loaded_models"])
    for run in (keyframes, ksampler):
        before = run(core, demo.model, prompts, latent)
        core.module("nodes._compat").unload(adapter.conditioner_of(demo.model))
        loaded = [entry.model.model for entry in management.current_loaded_models if entry.model is not None]
        assert demo.model.model.conditioner not in loaded
        assert demo.model.model in loaded
        assert torch.equal(run(core, demo.model, prompts, latent), before)


@pytest.mark.parametrize("run", [keyframes, ksampler])
@pytest.mark.parametrize("layer", ["text_values", "modulation", "time_embedding"])
def test_lora_on_the_conditioner_changes_the_result(core, demo, prompts, latent, run, layer):
    names = demo.model.model.conditioner.state_dict()
    ends = {
        "text_values": ".to_value.weight",
        "modulation": ".context_mlp.1.weight",
        "time_embedding": "embed.1.weight",
    }
    key = next(name for name in names if name.endswith(ends[layer]) and "feature_pooling" not in name)
    patched = demo.model.clone()
    assert patched.add_patches({key: (torch.ones_like(names[key]),)}, 0.1) == [key]
    before = run(core, demo.model, prompts, latent)
    changed = run(core, patched, prompts, latent)
    again = run(core, patched, prompts, latent)
    after = run(core, demo.model, prompts, latent)
    assert (changed - before).abs().max() > 1e-3
    assert torch.equal(changed, again)
    assert torch.equal(before, after)


def test_lora_file_names_reach_the_conditioner(core, demo):
    lora = __import__("comfy.lora", fromlist=["model_lora_keys_unet"])
    known = lora.model_lora_keys_unet(demo.model.model, {})
    key = next(iter(demo.model.model.conditioner.state_dict())).removesuffix(".weight")
    assert known[key.replace("diffusion_model.", "diffusion_model.", 1)] == f"{key}.weight"


def test_clone_shares_the_conditioner_and_a_foreign_one_is_replaced(core, demo, adapter):
    clone = demo.model.clone()
    own = adapter.conditioner_of(clone)
    assert own is not adapter.conditioner_of(demo.model)
    assert own.model is demo.model.model.conditioner
    # Core may put another copy of the model under a clone, whose conditioner is another one.
    clone.set_additional_models(adapter.KEY, [SimpleNamespace(model=object())])
    assert adapter.conditioner_of(clone).model is demo.model.model.conditioner


@pytest.mark.parametrize("run", [keyframes, ksampler])
def test_merging_finds_no_lora_of_another_clone(core, demo, prompts, latent, adapter, run):
    run(core, demo.model, prompts, latent)
    own = merged_weight(demo.model)
    patched = with_lora(demo.model, 0.1)
    run(core, patched, prompts, latent)
    assert torch.equal(merged_weight(demo.model), own)
    assert torch.equal(merged_weight(patched), own)


def test_a_run_that_fails_leaves_no_lora_behind(core, demo, prompts, latent, adapter):
    def fail(executor, *args, **kwargs):
        executor(*args, **kwargs)
        raise ArithmeticError

    own = merged_weight(demo.model)
    patched = with_lora(demo.model, 0.1)

    def fail_loaded():
        with adapter.LoadedToPrepare(patched, 0):
            assert not torch.equal(patched.model.state_dict()[value_key(patched)], own)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail_loaded()
    assert torch.equal(merged_weight(demo.model), own)
    for wrapped in ("sampler_sample", "prepare_sampling"):
        failing = patched.clone()
        failing.add_wrapper_with_key(wrapped, "test", fail)
        # Ours is the outer wrapper, as it was added first.
        with pytest.raises(ArithmeticError):
            ksampler(core, failing, prompts, latent)
        assert torch.equal(merged_weight(demo.model), own)


def test_a_conditioner_s_new_patcher_undoes_the_patches_of_an_earlier_one(core, demo, adapter, management):
    key, own = value_key(demo.model), merged_weight(demo.model)
    for strength in (0.25, 0.5):
        patched = with_lora(demo.model, strength)
        patched.set_additional_models(adapter.KEY, [])
        management.load_models_gpu([adapter.conditioner_of(patched)])
        assert torch.allclose(demo.model.model.state_dict()[key], own + strength, atol=1e-6)
    management.load_models_gpu([adapter.conditioner_of(demo.model)])
    assert torch.equal(demo.model.model.state_dict()[key], own)


def save_and_open(core, model, name):
    """What core's Save Model writes, opened by our loader."""
    path = core.base / "models" / "diffusion_models" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    # As core runs nodes.
    with torch.inference_mode():
        importlib.import_module("comfy.sd").save_checkpoint(str(path), model)
        return core.run("FusionFramesLoadModel", model_name=path.name)[0]


@pytest.mark.parametrize("stage", ["model", "interpolation"])
def test_core_saves_every_weight_and_our_loader_opens_the_file(core, demo, stage):
    model = getattr(demo, stage)
    opened = save_and_open(core, model, f"saved_{stage}")
    assert opened.model.network_config == model.model.network_config
    assert opened.model.latent_space == model.model.latent_space
    assert torch.equal(opened.model.null_embedding, model.model.null_embedding)
    saved, own = opened.model.state_dict(), model.model.state_dict()
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in own)


def test_core_saves_a_lora_with_the_weights(core, demo, prompts, latent):
    patched = with_lora(demo.model, 0.1)
    # Core takes a loaded layer as it is, so the conditioner must not stay as this run left it.
    before = keyframes(core, demo.model, prompts, latent)
    opened = save_and_open(core, patched, "saved_lora")
    key = value_key(demo.model)
    assert torch.allclose(opened.model.state_dict()[key], merged_weight(demo.model) + 0.1, atol=1e-6)
    assert torch.equal(keyframes(core, opened, prompts, latent), keyframes(core, patched, prompts, latent))
    assert torch.equal(keyframes(core, demo.model, prompts, latent), before)


def test_a_network_lists_its_conditioner_at_every_depth(core, demo):
    network = demo.model.model.diffusion_model
    names = set(network.state_dict())
    assert len(names) == len(dict(network.named_parameters())) + len(demo.model.model.conditioner.state_dict())
    assert set(torch.nn.ModuleDict({"unet": network}).state_dict(prefix="a.")) == {f"a.unet.{name}" for name in names}
