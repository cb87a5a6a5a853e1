"""Files in core's quantised formats: they stay quantised, act like the network they were made of, and are saved so."""

import importlib

import pytest
import torch
from support.graphs import ksampler
from support.quantised import (
    FORMATS,
    Folder,
    decibels,
    in_header,
    kept_layers,
    known_formats,
    linear_names,
    quantise,
    with_markers,
)

KEYFRAMES, TEXT = "fusionframes_demo_keyframes.safetensors", "fusionframes_demo_text_encoder.safetensors"
PACK = {"prompt": {"1": {}}, "extra_pnginfo": {"workflow": {"a": 1}}}
# Signal to noise of a sample and of a text: some decibels below what was measured.
SAMPLE = {"float8_e4m3fn": 33, "mxfp8": 33, "nvfp4": 28, "int8_tensorwise": 46}
CONTEXT = {"float8_e4m3fn": 26, "mxfp8": 26, "nvfp4": 16, "int8_tensorwise": 35}


@pytest.fixture(scope="module")
def nets(core):
    return Folder(core, "diffusion_models", KEYFRAMES)


@pytest.fixture(scope="module")
def texts(core):
    return Folder(core, "text_encoders", TEXT)


@pytest.fixture(scope="module")
def small(core):
    return core.run("FusionFramesEmptyLatent", keyframes=2, preset="64 x 64, demo")[0]


@pytest.fixture(scope="module")
def exact(core, demo, prompts, small):
    return ksampler(core, demo.model, prompts, small)


def load(core, name, **options):
    with torch.inference_mode():
        return core.run("FusionFramesLoadModel", model_name=name, **options)[0]


def count_layers(nets):
    """The projection of the text is in the same file and is no layer of the network."""
    return sum(not name.startswith("projection") for name in linear_names(nets.tensors))


def encode(core, clip):
    return core.nodes.NODE_CLASS_MAPPINGS["CLIPTextEncode"]().encode(clip, "a large red circle")[0][0][0]


def need(form):
    if form not in known_formats():
        pytest.skip(f"this core has no {form}")


@pytest.mark.parametrize("form", FORMATS)
def test_network_stays_quantised_and_samples_alike(core, nets, prompts, small, exact, form):
    need(form)
    model = load(core, nets.quantised(form))
    kept = kept_layers(model.model.diffusion_model) + kept_layers(model.model.conditioner)
    assert kept == count_layers(nets)
    assert SAMPLE[form] < decibels(ksampler(core, model, prompts, small), exact) < 100


@pytest.mark.parametrize("form", FORMATS)
def test_text_encoder_stays_quantised_and_encodes_alike(core, demo, texts, form):
    need(form)
    names = linear_names(texts.tensors)
    clip = core.run(
        "FusionFramesLoadTextEncoder", text_encoder_name=texts.quantised(form, names), projection_name=KEYFRAMES
    )[0]
    assert kept_layers(clip.cond_stage_model) == len(names)
    assert CONTEXT[form] < decibels(encode(core, clip), encode(core, demo.clip)) < 100


def test_both_spellings_and_the_older_one_are_the_same(core, nets, prompts, small):
    tensors, layers = quantise(nets.tensors, linear_names(nets.tensors), "float8_e4m3fn")
    older = {k.replace(".weight_scale", ".scale_weight"): v for k, v in tensors.items()}
    files = [
        nets.write("markers", with_markers(tensors, layers)),
        nets.write("header", tensors, in_header(layers)),
        nets.write("older", {**older, "scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}),
    ]
    states = [load(core, file).model.state_dict() for file in files]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[key].float(), states[0][key].float()) for key in state)


@pytest.mark.parametrize("form", FORMATS)
def test_lora_acts_and_saving_again_gives_the_same_numbers(core, nets, demo, prompts, small, form):
    need(form)
    names = [key.removesuffix(".weight") for key in demo.model.model.state_dict() if key.endswith("to_query.weight")]
    generator = torch.Generator().manual_seed(5)
    lora = {}
    for name in names[:4]:
        rows, columns = demo.model.model.state_dict()[f"{name}.weight"].shape
        lora[f"{name}.lora_up.weight"] = torch.randn(rows, 1, generator=generator)
        lora[f"{name}.lora_down.weight"] = torch.randn(1, columns, generator=generator)
    quantised = load(core, nets.quantised(form))
    load_lora = importlib.import_module("comfy.sd").load_lora_for_models
    plain, theirs = (load_lora(model, None, lora, 1.0, 0.0)[0] for model in (demo.model, quantised))
    wanted, found, without = (ksampler(core, model, prompts, small, 2) for model in (plain, theirs, quantised))
    # The LoRA does far more than the format takes away.
    assert decibels(found, without) + 6 < decibels(found, wanted)
    nodes = importlib.import_module("comfy_extras.nodes_model_merging")
    with torch.inference_mode():
        nodes.ModelSave().save(quantised, f"again_{form}", **PACK)
    saved = core.base / "output" / f"again_{form}_00001_.safetensors"
    saved.rename(nets.path / saved.name)
    core.folder_paths.filename_list_cache.clear()
    again = load(core, saved.name)
    ours, others = quantised.model.state_dict(), again.model.state_dict()
    assert ours.keys() == others.keys()
    assert sum(key.endswith(".comfy_quant") for key in others) == count_layers(nets)
    assert all(torch.equal(ours[key], others[key]) for key in ours)
    assert torch.equal(ksampler(core, again, prompts, small, 2), without)


def test_folded_layers_are_made_of_widened_weights_and_saved_as_filed(core, nets, prompts, small):
    name = nets.quantised("float8_e4m3fn")
    released, folded = load(core, name), load(core, name, layers="folded")
    assert decibels(ksampler(core, folded, prompts, small), ksampler(core, released, prompts, small)) > 60
    assert folded.model.state_dict().keys() == released.model.state_dict().keys()


def test_convolutions_in_the_engine_s_own_eight_bits_are_widened(core, nets, prompts, small):
    tensors, wide, layers = dict(nets.tensors), dict(nets.tensors), {}
    for key in [key for key, value in tensors.items() if value.ndim == 4 and "resnet_blocks" in key]:
        weight = tensors[key].float()
        scale = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
        layer = key.removesuffix(".weight")
        tensors[key] = (weight / scale).round().to(torch.int8)
        wide[key] = tensors[key] * scale
        tensors[f"{layer}.weight_scale"], layers[layer] = scale, {"format": "ff_int8_channel"}
    assert len(layers) > 20
    models = [load(core, nets.write("own", with_markers(tensors, layers))), load(core, nets.write("wide", wide))]
    states = [model.model.state_dict() for model in models]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def drop_scale(tensors, layers):
    tensors.pop(next(key for key in tensors if key.endswith(".weight_scale")))


def name_another_format(tensors, layers):
    layers[next(iter(layers))] = {"format": "int2"}


def widen_stored_values(tensors, layers):
    key = f"{next(iter(layers))}.weight"
    tensors[key] = tensors[key].float()


BROKEN = {
    "no scales": (drop_scale, "incomplete or misshapen"),
    "an unknown format": (name_another_format, "as int2: update ComfyUI"),
    "another dtype": (widen_stored_values, "incomplete or misshapen"),
}


@pytest.mark.parametrize("way", BROKEN)
def test_broken_files_are_refused_in_a_sentence(core, nets, way):
    change, words = BROKEN[way]
    tensors, layers = quantise(nets.tensors, linear_names(nets.tensors)[:3], "float8_e4m3fn")
    change(tensors, layers)
    with pytest.raises(core.module("ff_kernels.errors").CheckpointError, match=words) as caught:
        load(core, nets.write("broken", with_markers(tensors, layers)))
    assert str(caught.value).startswith("model_name: expected")
    assert "\n" not in str(caught.value)
