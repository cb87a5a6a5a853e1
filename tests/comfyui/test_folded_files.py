"""Files of folded layers as MODELs: whatever ``layers`` says, they are the network that was folded, and no other."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import release, tiny
from support.graphs import keyframes, ksampler, patched

from fusionframes.ff_kernels.checkpoints.conversion import convert, write_checkpoint
from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.demo import WEIGHTS
from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.ops.rounding import Report
from fusionframes.ff_kernels.pipeline.settings import Settings

SEED, STEPS, KEYFRAMES = 7, 3, 3
PROMPT = "a large red circle moves up"
STAGES = {
    "model": "fusionframes_demo_keyframes.safetensors",
    "interpolation": "fusionframes_demo_interpolation.safetensors",
}
PACK = {"prompt": {"1": {}}, "extra_pnginfo": {"workflow": {"a": 1}}}
LAYERS = ("as released", "folded")
ADVICE = (
    "model expected layers as released for a LoRA, training, merging or another compute dtype, got those of a folded "
    "file, which cannot be turned back: load the file that it was made from"
)


@pytest.fixture(scope="module")
def folder(core):
    path = core.base / "models" / "diffusion_models"
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def files(core, folder):
    """Names of the demo's U-Nets as ``convert --fold`` writes them: exact, in 8 bit, and in the dtype of the demo."""
    made = {}
    for form, dtype, rounds in (("exact", torch.float32, False), ("8 bit", torch.float32, True), ("half", None, False)):
        for stage, name in STAGES.items():
            made[form, stage] = f"{form}_{stage}.safetensors"
            target, rounding = folder / made[form, stage], Report() if rounds else None
            convert(WEIGHTS / "diffusion_models" / name, target, folds=True, dtype=dtype, rounding=rounding)
    core.folder_paths.filename_list_cache.clear()
    return made


def load(core, name, **options):
    with torch.inference_mode():
        return core.run("FusionFramesLoadModel", model_name=name, **options)[0]


@pytest.fixture(scope="module")
def model(core, files):
    return load(core, files["exact", "model"])


@pytest.fixture(scope="module")
def small(core):
    return core.run("FusionFramesEmptyLatent", keyframes=KEYFRAMES, preset="64 x 64, demo")[0]


def video_of(core, models, prompts, latent):
    shared = {"seed": SEED, "steps": STEPS}
    stills = core.run(
        "FusionFramesKeyframeSampler", model=models[0], positive=prompts[0], negative=prompts[1], latent=latent,
        guidance_scale=2.0, **shared,
    )[0]  # fmt: skip
    video = core.run("FusionFramesInterpolate", model=models[1], latent=stills, guidance_scale=0.25, **shared)[0]
    return video["samples"]


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("form", ["exact", "8 bit"])
def test_clips_are_the_command_line_s_bit_for_bit(core, files, prompts, small, form, layers):
    settings = Settings(
        fps="medium", steps=STEPS, keyframes=KEYFRAMES, guidance_scale=2.0, interpolation_guidance=0.25, seed=SEED
    )
    expected = demo_pipeline(rounds=form == "8 bit").generate(PROMPT, settings).latents
    models = [load(core, files[form, stage], layers=layers) for stage in STAGES]
    assert torch.equal(video_of(core, models, prompts, small)[0].transpose(0, 1), expected)


def test_samples_of_core_are_those_of_folding_at_load(core, files, prompts, small, model):
    at_load = load(core, STAGES["model"], layers="folded")
    expected = ksampler(core, at_load, prompts, small)
    assert torch.equal(ksampler(core, model, prompts, small), expected)
    rounded = ksampler(core, load(core, files["half", "model"]), prompts, small)
    assert not torch.equal(rounded, expected)
    assert (rounded - expected).square().mean().sqrt() < 0.02 * expected.std()
    guided = [patched(core, "nodes_pag", "PerturbedAttentionGuidance", m, 3.0) for m in (model, at_load)]
    assert torch.equal(*(ksampler(core, each, prompts, small) for each in guided))


@pytest.fixture(scope="module")
def at_load_and_filed(core, folder):
    """MODELs of tiny files, folded at load and folded in the file: release 1.1, and the paper's baseline."""
    release.write(folder, "1.1")
    tensors = {**tiny.unet(tiny.MASKED).state_dict(), "null_embedding": tiny.draw(tiny.CONTEXT, seed=7)}
    write_checkpoint(folder / "masked.safetensors", Kind("masked", "1.0", tiny.MASKED), tensors, None)
    models = {}
    for stage in ("keyframe", "interpolation", "masked"):
        convert(folder / f"{stage}.safetensors", folder / f"{stage}_folded.safetensors", folds=True)
        core.folder_paths.filename_list_cache.clear()
        names = {f"{stage}.safetensors": "folded", f"{stage}_folded.safetensors": "as released"}
        models[stage] = [load(core, name, layers=layers) for name, layers in names.items()]
    return models


@pytest.mark.parametrize("stage", ["keyframe", "interpolation", "masked"])
def test_networks_of_other_releases_are_those_of_folding_at_load(at_load_and_filed, stage):
    parts = [(m.model.diffusion_model, m.model.conditioner) for m in at_load_and_filed[stage]]
    for ours, theirs in zip(*parts, strict=True):
        ours, theirs = tensors_in(ours), tensors_in(theirs)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert all(ours[name].stride() == theirs[name].stride() for name in ours)


def tensors_in(module):
    return dict((*module.named_parameters(), *module.named_buffers()))


def test_clips_of_release_1_1_and_of_the_baseline_are_those_of_folding_at_load(core, at_load_and_filed):
    context = tiny.draw(2, 6, tiny.CONTEXT)
    prompts = [[[row[None], {"attention_mask": torch.ones(1, 6)}]] for row in context]
    latent = {"samples": torch.zeros(2, 4, 1, 8, 8)}
    stills, samples = (
        [chain(core, model, prompts, latent) for model in at_load_and_filed["keyframe"]]
        for chain in (keyframes, ksampler)
    )
    known = {"samples": tiny.draw(1, 4, 3, 8, 8)}
    filled = {"latent": known, "seed": 1, "steps": 2, "positive": prompts[0]}
    gaps, masked = (
        [core.run("FusionFramesInterpolate", model=m, **filled)[0]["samples"] for m in at_load_and_filed[stage]]
        for stage in ("interpolation", "masked")
    )
    for found, expected in (stills, samples, gaps, masked):
        assert found.isfinite().all()
        # Rows of these sizes begin at all places in a file, and mapped weights are summed in another order.
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_several_clips_at_once_are_those_of_folding_at_load(core, prompts, small, model):
    at_load, batch = load(core, STAGES["model"], layers="folded"), {"samples": small["samples"].repeat(3, 1, 1, 1, 1)}
    for chain in (keyframes, ksampler):
        assert torch.equal(*(chain(core, each, prompts, batch, 2) for each in (model, at_load)))


def test_projection_is_found_in_the_folded_file(core, demo, files):
    names = {"text_encoder_name": "fusionframes_demo_text_encoder.safetensors"}
    clip = core.run("FusionFramesLoadTextEncoder", **names, projection_name=files["half", "model"])[0]
    encode = core.nodes.NODE_CLASS_MAPPINGS["CLIPTextEncode"]().encode
    assert torch.equal(encode(clip, PROMPT)[0][0][0], encode(demo.clip, PROMPT)[0][0][0])


def write_lora(core, model):
    folder = core.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    key = next(name for name in model.model.state_dict() if name.endswith("in_layer.weight"))
    rows = len(model.model.state_dict()[key])
    parts = {"lora_up.weight": torch.ones(rows, 1), "lora_down.weight": torch.ones(1, 36)}
    save_file({f"{key.removesuffix('weight')}{k}": v for k, v in parts.items()}, folder / "plain.safetensors")
    core.folder_paths.filename_list_cache.clear()
    return "plain.safetensors"


def merged(core, ours, theirs):
    nodes = importlib.import_module("comfy_extras.nodes_model_merging")
    node = nodes.ModelMergeSimple
    return node().merge(ours, theirs, 0.5) if hasattr(node, "merge") else node.execute(ours, theirs, 0.5)


BY_NAME = {
    "LoRA": lambda core, demo, m: core.nodes.LoraLoaderModelOnly().load_lora_model_only(m, write_lora(core, m), 1.0),
    "merging with a released one": lambda core, demo, m: merged(core, m, demo.model),
    "merging into a released one": lambda core, demo, m: merged(core, demo.model, m),
    "hook LoRA": lambda core, demo, m: m.clone().add_hook_patches(SimpleNamespace(hook_ref=1), {}),
    "compute dtype": lambda core, demo, m: m.clone().set_model_compute_dtype(torch.bfloat16),
}


@pytest.mark.parametrize("way", BY_NAME)
def test_what_goes_by_names_of_weights_is_sent_to_the_original_file(core, demo, model, way):
    with pytest.raises(core.module("ff_kernels.errors").InputError, match=f"^{ADVICE}$"):
        BY_NAME[way](core, demo, model)


@pytest.mark.parametrize("form", ["exact", "8 bit"])
@pytest.mark.parametrize("whole", [False, True], ids=["Save Model", "Save Checkpoint"])
def test_a_saved_folded_model_is_the_folded_model(core, demo, files, folder, prompts, small, form, whole):
    nodes, name = importlib.import_module("comfy_extras.nodes_model_merging"), f"again_{form}_{whole}"
    model = load(core, files[form, "model"])
    with torch.inference_mode():
        if whole:
            nodes.CheckpointSave().save(model, demo.clip, demo.vae, name, **PACK)
        else:
            nodes.ModelSave().save(model, name, **PACK)
    saved = core.base / "output" / f"{name}_00001_.safetensors"
    saved = saved.rename(folder / saved.name)
    core.folder_paths.filename_list_cache.clear()
    written = {key.removeprefix("model.diffusion_model."): value for key, value in load_file(saved).items()}
    source = load_file(folder / files[form, "model"])
    source = {key: value for key, value in source.items() if not key.startswith("projection")}
    assert all(torch.equal(written[key], value) and written[key].dtype == value.dtype for key, value in source.items())
    again = load(core, saved.name)
    assert again.model.network_config == model.model.network_config
    # Core's files do not lie as ours do, and mapped weights are summed in another order.
    assert (ksampler(core, again, prompts, small) - ksampler(core, model, prompts, small)).abs().max() < 1e-4
    with pytest.raises(core.module("ff_kernels.errors").InputError, match="those of a folded file"):
        again.get_key_patches("diffusion_model.")


@pytest.mark.parametrize("form", ["exact", "8 bit"])
def test_core_is_told_the_bytes_that_lie_in_memory_and_moves_them_whole(core, files, prompts, small, form):
    management = importlib.import_module("comfy.model_management")
    model, at_load = load(core, files[form, "model"]), load(core, STAGES["model"], layers="folded")
    own = core.module("nodes.adapters.conditioner").conditioner_of
    for ours, theirs in ((model, at_load), (own(model), own(at_load))):
        # Weights in 8 bit are widened, as layers of torch's know no others.
        assert ours.model_size() == theirs.model_size() == sum(t.nbytes for t in tensors_in(ours.model).values())
    before = ksampler(core, model, prompts, small)
    assert model.loaded_size() == model.model_size()
    assert model.partially_unload("cpu", 1) == 0
    management.unload_all_models()
    assert model.loaded_size() == 0
    assert torch.equal(ksampler(core, model, prompts, small), before)


def cut(tensors, metadata):
    tensors.pop(next(key for key in tensors if key.endswith(".joint.weight")))


def untold(tensors, metadata):
    metadata.clear()


BROKEN = {
    "a layer is missing": (cut, "got 1 missing"),
    "nothing says that it is folded": (untold, "expected head_dim to divide"),
}


@pytest.mark.parametrize("way", BROKEN)
def test_broken_folded_files_are_refused_in_a_sentence(core, files, folder, way):
    change, words = BROKEN[way]
    with safe_open(folder / files["half", "model"], "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, folder / "broken.safetensors", metadata)
    core.folder_paths.filename_list_cache.clear()
    with pytest.raises(core.module("ff_kernels.errors").CheckpointError, match=words) as caught:
        load(core, "broken.safetensors")
    assert str(caught.value).startswith("model_name: ") or "broken.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
