import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import weights
from support.tiny import CONTEXT, TEXT
from support.weights import CONFIGS, OVERRIDES

from fusionframes.ff_kernels.checkpoints.detection import detect
from fusionframes.ff_kernels.checkpoints.loading import build_network, load
from fusionframes.ff_kernels.checkpoints.reading import Contents, read_contents
from fusionframes.ff_kernels.demo import WEIGHTS
from fusionframes.ff_kernels.errors import CheckpointError

FULL_SIZE = {
    "v10_keyframe": ("keyframe", "1.0"),
    "v10_interpolation": ("interpolation", "1.0"),
    "v10_movq": ("movq", ""),
    "v11_keyframe": ("keyframe", "1.1"),
    "v11_interpolation": ("interpolation", "1.1"),
    "v11_movq": ("movq", ""),
    "v11_video_movq": ("video_movq", ""),
}


def flat(name):
    nest = weights.nested(name)
    return {**nest.pop("unet"), "null_embedding": nest["null_embedding"]} if "unet" in nest else nest


def found(tensors, overrides=OVERRIDES, metadata=None):
    return detect(Contents(Path("weights.pt"), tensors, metadata or {}), overrides)


def load_changed(tmp_path, name, **changes):
    """Load a file in which tensors are replaced, added or (None) left out."""
    tensors = {**flat(name), **{key.replace("__", "."): value for key, value in changes.items()}}
    torch.save({key: value for key, value in tensors.items() if value is not None}, tmp_path / "changed.pt")
    return load(tmp_path / "changed.pt", overrides=OVERRIDES)


@pytest.mark.parametrize("name", CONFIGS)
def test_detect_authors_file_gives_kind_and_config(tmp_path, name):
    contents = read_contents(weights.save(tmp_path, name))
    kind, expected = detect(contents, OVERRIDES), weights.kind_of(name)
    assert (kind, kind.config) == (expected, expected.config)
    own = {key: value.shape for key, value in build_network(kind, device="meta").state_dict().items()}
    assert own == {key: value.shape for key, value in weights.network_of(name).state_dict().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_load_authors_file_gives_same_weights_and_outputs(tmp_path, name):
    loaded, network = load(weights.save(tmp_path, name), overrides=OVERRIDES), weights.network_of(name)
    assert weights.equal(loaded.network, network)
    assert torch.equal(weights.run(loaded.network), weights.run(network))
    assert not loaded.network.training
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert (loaded.null_embedding is not None) == ("num_channels" in loaded.kind.config.to_dict())
    assert (loaded.projection is not None) == (name == "keyframe_v10")


def test_load_keyframe_v10_gives_null_embedding_and_projection(tmp_path):
    loaded = load(weights.save(tmp_path, "keyframe_v10"), overrides=OVERRIDES)
    assert torch.equal(loaded.null_embedding, weights.nested("keyframe_v10")["null_embedding"])
    expected = weights.projection()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.projection.state_dict().items())


def test_load_projection_file_gives_the_prompts_projection(tmp_path):
    loaded = load(weights.save(tmp_path, "projection"), stage="projection")
    assert (loaded.kind.stage, loaded.kind.config, loaded.network) == ("projection", None, None)
    assert torch.equal(loaded.projection[0].weight, weights.projection(1)["0.weight"])


def test_load_with_dtype_casts_network_null_and_projection(tmp_path):
    loaded = load(weights.save(tmp_path, "keyframe_v10"), dtype=torch.bfloat16, overrides=OVERRIDES)
    tensors = [*loaded.network.parameters(), *loaded.projection.parameters(), loaded.null_embedding]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


@pytest.mark.parametrize("tied", ["shared.weight", "encoder.embed_tokens.weight"])
def test_load_whole_t5_with_one_embedding_name_gives_the_encoder(tmp_path, tied):
    state = flat("text_encoder")
    embedding = state.pop("shared.weight")
    state.pop("encoder.embed_tokens.weight")
    decoder = ("decoder.block.0.layer.0.layer_norm.weight", "decoder.embed_tokens.weight", "lm_head.weight",
               "decoder.final_layer_norm.weight")  # fmt: skip
    torch.save({**state, tied: embedding, **dict.fromkeys(decoder, embedding)}, tmp_path / "t5.bin")
    loaded = load(tmp_path / "t5.bin", dtype=torch.bfloat16)
    assert loaded.kind.config == TEXT
    assert loaded.network.shared.weight is loaded.network.encoder.embed_tokens.weight
    assert torch.equal(loaded.network.shared.weight, embedding.bfloat16())


@pytest.mark.parametrize("name", FULL_SIZE)
def test_detect_full_size_keys_gives_the_released_config(golden, name):
    manifest = json.loads((golden / f"manifest_{name}.json").read_text())
    shapes = dict(manifest["state_dict"])
    if manifest["nesting"] != "flat":
        shapes["null_embedding"] = manifest["nesting"]["null_embedding"]
    kind = found({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, None)
    assert (kind.stage, kind.family) == FULL_SIZE[name]
    config = kind.config.to_dict()
    both = config.keys() & manifest["config"].keys()
    assert {key: config[key] for key in both} == {key: manifest["config"][key] for key in both}
    own = build_network(kind, device="meta").state_dict()
    assert {key: list(value.shape) for key, value in own.items()} == manifest["state_dict"]


def test_detect_override_wins_over_metadata_and_metadata_over_default():
    metadata = {"config": {"num_frames": 7, "head_dim": 8, "groups": 8, "model_channels": 99}}
    config = found(flat("keyframe_v10"), {"head_dim": 16}, metadata).config
    assert (config.num_frames, config.head_dim, config.groups, config.model_channels) == (7, 16, 8, 16)


@pytest.mark.parametrize(("name", "value"), [("head_dim", 64), ("head_dim", 0), ("groups", 5), ("groups", "8"),
                                             ("num_frames", -1), ("head_dim", True), ("groups", 8.0)])  # fmt: skip
def test_detect_unfitting_override_raises(name, value):
    with pytest.raises(CheckpointError, match=f"{name}.* got {value!r}"):
        found(flat("keyframe_v10"), {**OVERRIDES, name: value})


def test_load_tiny_network_without_overrides_raises(tmp_path):
    with pytest.raises(CheckpointError, match="groups to divide the 16 channels of a layer, got 32"):
        load(weights.save(tmp_path, "movq"))


@pytest.mark.parametrize(("name", "stage", "where"), [
    ("movq", "video_movq", r"video_movq\.pt of huggingface.co/ai-forever/KandinskyVideo_1_1"),
    ("video_movq", "movq", r"take movq\.pt of either"),
    ("interpolation_v11", "keyframe", r"kandinsky_video\.pt .* or t2v\.pt"),
    ("text_encoder", "projection", r"t5_projections\.pt"),
    ("projection", "text_encoder", "google/flan-ul2"),
])  # fmt: skip
def test_load_wrong_stage_raises_naming_the_right_file(tmp_path, name, stage, where):
    path = weights.save(tmp_path, name)
    with pytest.raises(CheckpointError, match=f"{name}.pt', got {weights.kind_of(name).title}: .*{where}"):
        load(path, stage=stage, overrides=OVERRIDES)


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("movq", {"decoder__conv_out__bias": None}, r"1 missing \('decoder.conv_out.bias'\): take movq.pt"),
    ("movq", {"extra__weight": torch.zeros(1)}, r"1 unexpected \('extra.weight'\)"),
    ("movq", {"decoder__conv_out__bias": torch.zeros(4)}, r"\('decoder.conv_out.bias' is \[4\], not \[3\]\)"),
    ("movq", {"decoder__conv_out__bias": torch.zeros(3).long()}, r"'decoder.conv_out.bias' is torch.int64"),
    ("movq", {"encoder__conv_out__weight": None}, r"KeyError\('encoder.conv_out.weight'\)"),
    ("movq", {"decoder__norm_out__conv_y__weight": None}, r"Stable Diffusion autoencoder .*: take movq\.pt"),
    ("text_encoder", {"encoder__block__0__layer__1__DenseReluDense__wi_0__weight": None}, "another text encoder"),
    ("keyframe_v10", {"to_temporal_embed__1__weight": None}, r"picture model .*: take kandinsky_video\.pt"),
    ("keyframe_v10", {"in_layer__weight": None}, "something else .its first key is 'to_time_embed"),
    ("keyframe_v10", {"image_in_layer__weight": torch.zeros(16, 4, 3, 3)}, r"missing .*: take t2v\.pt"),
    ("interpolation_v10", {"skip_merge": None}, r"1 missing \('skip_merge'\): take kandinsky_video_interpolation\.pt"),
    ("keyframe_v11", {"null_embedding": torch.zeros(5)}, rf"{CONTEXT} floating values .* got \[5\]"),
    ("keyframe_v11", {"null_embedding": torch.zeros(CONTEXT).long()}, "torch.int64"),
    ("keyframe_v11", {"projections__t5__0__weight": torch.zeros(2)}, r"projections.t5.*\['0.weight'\]"),
    ("keyframe_v11", {"down_samples__0__resnet_attn_blocks__0__0__resnet_blocks__0__projection__weight":
                      torch.zeros(900, 16, 1, 1)}, "cannot be built"),
])  # fmt: skip
def test_load_unfitting_tensors_raises_naming_them(tmp_path, name, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load_changed(tmp_path, name, **changes)


@pytest.mark.parametrize(("content", "message"), [
    ({"null_embedding": torch.zeros(4)}, "got no network at all"),
    ({"epoch": 3, "betas": [0.1]}, "got no network at all"),
    ({"projection_interpolation": weights.projection()}, r"got only 'projection_interpolation.0.weight'"),
    ({"model.diffusion_model.weight": torch.zeros(1)}, "its first key is 'model.diffusion_model.weight'"),
])  # fmt: skip
def test_load_foreign_dictionary_raises(tmp_path, content, message):
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "foreign.pt")


@pytest.mark.parametrize("name", ["vae/fusionframes_demo_movq", "vae/fusionframes_demo_video_movq",
                                  "diffusion_models/fusionframes_demo_keyframes"])  # fmt: skip
def test_demo_weights_without_metadata_are_refused_and_not_run_with_the_groups_of_the_release(tmp_path, name):
    save_file(load_file(WEIGHTS / f"{name}.safetensors"), tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match=r"groups .*without metadata|own (head_dim|groups)"):
        load(tmp_path / "plain.safetensors")
    given = {"groups": 8, "head_dim": 16}
    told = load(tmp_path / "plain.safetensors", overrides=given)
    assert told.network is not None
