"""LoRA files: what is read, what merging does to the weights, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import tiny

from fusionframes.ff_kernels.checkpoints.conversion import convert, write_checkpoint
from fusionframes.ff_kernels.checkpoints.detection import Kind, detect
from fusionframes.ff_kernels.checkpoints.folder import find_models
from fusionframes.ff_kernels.checkpoints.folding import Target
from fusionframes.ff_kernels.checkpoints.loading import load_as_stored
from fusionframes.ff_kernels.checkpoints.lora import merge_lora, parse_choice, read_lora, with_loras, write_lora
from fusionframes.ff_kernels.checkpoints.reading import read_contents
from fusionframes.ff_kernels.demo import WEIGHTS
from fusionframes.ff_kernels.errors import CheckpointError, InputError

KIND = Kind("keyframe", "1.0", tiny.KEYFRAME_V10)
TIME = "down_samples.0.resnet_attn_blocks.0.3.temporal_resnet_blocks.0.2"
QUERY = "down_samples.1.self_attention_block.attention.to_query"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "keyframes.safetensors"
    write_checkpoint(path, KIND, tiny.unet(tiny.KEYFRAME_V10).state_dict(), torch.float32)
    return path


@pytest.fixture(scope="module")
def shapes(base):
    return {key: tuple(value.shape) for key, value in load_file(base).items()}


def factors(shapes, name, rank=2, seed=0):
    shape = shapes[f"{name}.weight"]
    rest = torch.Size(shape[1:]).numel()
    return tiny.draw(shape[0], rank, seed=seed), tiny.draw(rank, rest, seed=seed + 1)


@pytest.fixture
def lora(tmp_path, shapes):
    path = tmp_path / "motion.safetensors"
    write_lora(path, {name: factors(shapes, name) for name in (TIME, QUERY)}, 0.5, KIND, {"layers": "all"})
    return path


def test_merge_adds_the_scaled_product_to_the_named_layers_only(base, lora, shapes):
    before, after = load_file(base), merge_lora(read_contents(base), read_lora(lora), 0.8).tensors
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"{TIME}.weight", f"{QUERY}.weight"}
    for name in (TIME, QUERY):
        up, down = factors(shapes, name)
        expected = before[f"{name}.weight"] + 0.8 * 0.5 * (up @ down).reshape(shapes[f"{name}.weight"])
        assert torch.allclose(after[f"{name}.weight"], expected, atol=1e-5)


def test_strength_0_is_the_base_itself_and_strengths_add_up(base, lora):
    contents, read = read_contents(base), read_lora(lora)
    assert merge_lora(contents, read, 0.0) is contents
    once = merge_lora(contents, read, 1.0).tensors
    twice = merge_lora(merge_lora(contents, read, 0.25), read, 0.75).tensors
    assert all(torch.allclose(once[key], twice[key], atol=1e-5) for key in once)


def test_merge_keeps_the_stored_dtype_and_adds_in_float32(tmp_path, base, lora, shapes):
    half = {key: value.half() for key, value in load_file(base).items()}
    path = tmp_path / "half.safetensors"
    write_checkpoint(path, KIND, half, None)
    merged = merge_lora(read_contents(path), read_lora(lora), 1.0).tensors[f"{QUERY}.weight"]
    up, down = factors(shapes, QUERY)
    assert torch.equal(merged, (half[f"{QUERY}.weight"].float() + 0.5 * (up @ down)).half())


def test_merged_layers_are_not_read_from_the_file_again_and_the_others_are(base, lora):
    contents = read_contents(base)
    merged_contents, target = merge_lora(contents, read_lora(lora), 1.0), Target(torch.device("cpu"), torch.float32)
    network, source_of = load_as_stored(merged_contents, detect(contents), target=target)
    merged = {f"{name}.weight" for name in (TIME, QUERY)}
    for name, parameter in network.named_parameters():
        source = source_of(parameter)
        assert (source is None) == (name in merged), name
        if source is not None:
            out = torch.empty_like(parameter)
            source.write_into(out)
            assert torch.equal(out, parameter)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "unet.", "lora_unet_", ""])
@pytest.mark.parametrize("ends", [("lora_up", "lora_down"), ("lora_B", "lora_A")])
def test_names_of_other_trainers_are_read(tmp_path, base, shapes, prefix, ends):
    up, down = factors(shapes, QUERY)
    name = QUERY.replace(".", "_") if prefix == "lora_unet_" else QUERY
    path = tmp_path / "other.safetensors"
    save_file({f"{prefix}{name}.{ends[0]}.weight": up, f"{prefix}{name}.{ends[1]}.weight": down}, path)
    merged = merge_lora(read_contents(base), read_lora(path), 1.0).tensors[f"{QUERY}.weight"]
    # Without an alpha the product counts as it is.
    assert torch.allclose(merged, load_file(base)[f"{QUERY}.weight"] + up @ down, atol=1e-5)


def test_whole_differences_of_weights_and_biases_are_added(tmp_path, base, shapes):
    up, down = factors(shapes, QUERY)
    keys = {"lora_up.weight": up, "lora_down.weight": down}
    parts = {f"diffusion_model.{QUERY}.{key}": value for key, value in keys.items()}
    parts |= {"diffusion_model.in_layer.diff_b": torch.ones(16), "diffusion_model.out_layer.0.diff": torch.ones(16)}
    save_file(parts, tmp_path / "diff.safetensors")
    before = load_file(base)
    after = merge_lora(read_contents(base), read_lora(tmp_path / "diff.safetensors"), 0.5).tensors
    assert torch.allclose(after["in_layer.bias"], before["in_layer.bias"] + 0.5)
    assert torch.allclose(after["out_layer.0.weight"], before["out_layer.0.weight"] + 0.5)


def test_written_file_says_what_it_belongs_to_as_hosts_and_people_look_for_it(lora):
    with safe_open(lora, framework="pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert {f"diffusion_model.{QUERY}.{end}" for end in ("lora_up.weight", "lora_down.weight", "alpha")} <= keys
    assert metadata["ss_network_dim"] == "2"
    assert metadata["ss_network_alpha"] == "1"
    assert metadata["ss_base_model_version"] == "fusionframes-1.0-keyframe"
    assert json.loads(metadata["fusionframes"]) == {"stage": "keyframe", "family": "1.0", "layers": "all"}
    assert load_file(lora)[f"diffusion_model.{QUERY}.alpha"].item() == 1.0


def test_lora_of_another_network_is_refused_by_name(tmp_path, base, shapes):
    up, down = factors(shapes, QUERY)
    write_lora(tmp_path / "a.safetensors", {"no.such.layer": (up, down)}, 1.0, KIND, {})
    with pytest.raises(CheckpointError, match=r"LoRA of this network in '.*a\.safetensors', got 'no\.such\.layer'"):
        merge_lora(read_contents(base), read_lora(tmp_path / "a.safetensors"), 1.0)
    write_lora(tmp_path / "b.safetensors", {QUERY: (up, down[:, 1:])}, 1.0, KIND, {})
    with pytest.raises(CheckpointError, match=r"expected a LoRA of this network"):
        merge_lora(read_contents(base), read_lora(tmp_path / "b.safetensors"), 1.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["x.lora_up.weight"], "both halves of layer 'x'"),
        (["x.lora_up.weight", "x.lora_down.weight", "x.dora_scale"], r"plain LoRA layers .*'x\.dora_scale'"),
        (["x.weight"], "expected a LoRA in safetensors"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path, keys, message):
    save_file({key: torch.ones(2, 2) for key in keys}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_lora(tmp_path / "x.safetensors")


def test_parse_choice_parts_file_and_strength(tmp_path):
    assert parse_choice("a/b.safetensors:0.5") == (Path("a/b.safetensors"), 0.5)
    assert parse_choice("a/b.safetensors:-1") == (Path("a/b.safetensors"), -1.0)
    assert parse_choice("b.safetensors") == (Path("b.safetensors"), 1.0)
    assert parse_choice(r"C:\b.safetensors")[1] == 1.0
    (tmp_path / "a:2").touch()
    assert parse_choice(str(tmp_path / "a:2")) == (tmp_path / "a:2", 1.0)
    for text in ("b.safetensors:strong", "b.safetensors:nan", "b.safetensors:inf"):
        with pytest.raises(InputError, match=r"FILE:strength with a number"):
            parse_choice(text)


def test_loras_go_to_the_unet_that_they_name_and_a_folder_passes_over_them(tmp_path):
    models = find_models(WEIGHTS)
    found = load_file(models.files["interpolation"][0].path)
    name = "down_samples.0.resnet_attn_blocks.0.0.resnet_blocks.1.temporal_projection"
    weight = found[f"{name}.weight"]
    up, down = tiny.draw(len(weight), 1), tiny.draw(1, weight[0].numel())
    path = tmp_path / "gaps.safetensors"
    write_lora(path, {name: (up, down)}, 1.0, replace(KIND, stage="interpolation"), {})
    files = with_loras(models, [(path, 1.0)]).files
    assert files["keyframe"] is models.files["keyframe"]
    merged = files["interpolation"][0].tensors[f"{name}.weight"]
    assert torch.equal(merged, (weight.float() + (up @ down).reshape(weight.shape)).to(weight.dtype))
    write_lora(path, {name: (up, down)}, 1.0, Kind("keyframe", "1.1"), {})
    with pytest.raises(CheckpointError, match=r"expected a LoRA for release 1\.0 in .*got one of the keyframe"):
        with_loras(models, [(path, 1.0)])
    for file in [*WEIGHTS.glob("*/*")]:
        (tmp_path / file.name).symlink_to(file)
    assert find_models(tmp_path).files.keys() == models.files.keys()


def test_convert_merges_before_it_writes(tmp_path, base, lora):
    target = tmp_path / "merged.safetensors"
    convert(base, target, overrides={"head_dim": 8, "groups": 4}, loras=[(lora, 0.5)])
    expected = merge_lora(read_contents(base), read_lora(lora), 0.5).tensors
    assert all(torch.equal(value, expected[key]) for key, value in load_file(target).items())
