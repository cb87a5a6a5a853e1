import json
import os
import pickle
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from support import tiny, weights
from support.weights import OVERRIDES

from fusionframes.ff_kernels.checkpoints.conversion import convert
from fusionframes.ff_kernels.checkpoints.loading import load
from fusionframes.ff_kernels.checkpoints.reading import METADATA_KEY, pack_metadata, read_contents
from fusionframes.ff_kernels.errors import CheckpointError


class Code:
    """A pickle that creates a file when it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo > {self.path}",)


@pytest.fixture
def text(tmp_path):
    return weights.save(tmp_path, "text_encoder")


def shards(folder, suffix, write):
    """Save the text encoder in two shards and return their index."""
    state = {key: value.clone() for key, value in weights.nested("text_encoder").items()}
    weight_map = {key: f"model-{i % 2}{suffix}" for i, key in enumerate(state)}
    for name in set(weight_map.values()):
        write({key: value for key, value in state.items() if weight_map[key] == name}, folder / name)
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


@pytest.mark.parametrize(("suffix", "write"), [(".safetensors", save_file), (".bin", torch.save)])
def test_load_shards_by_index_or_folder_gives_all_tensors(tmp_path, suffix, write):
    index = shards(tmp_path, suffix, write)
    for path in (index, tmp_path):
        assert weights.equal(load(path).network, weights.network_of("text_encoder"))


def test_load_missing_shard_raises(tmp_path):
    index = shards(tmp_path, ".safetensors", save_file)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors', found nothing there"):
        load(index)


def test_load_shards_without_a_listed_tensor_raises(tmp_path):
    index = shards(tmp_path, ".bin", torch.save)
    torch.save({}, tmp_path / "model-1.bin")
    count = len(weights.nested("text_encoder"))
    with pytest.raises(CheckpointError, match=f"expected {count} tensors .* got {count // 2} fewer"):
        load(index)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 5}}', "[" * 100_000])
def test_load_index_without_weight_map_raises(tmp_path, text):
    (tmp_path / "m.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"m\.index\.json', got one without a weight map"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["", "..", "m.index.json", "../m.index.json", "sub/notes.txt"])
def test_load_index_that_names_no_weights_raises(tmp_path, name):
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=f"got '{name.split('/')[-1]}'"):
        load(tmp_path)


def test_load_index_never_leaves_its_folder(tmp_path, text):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "m.index.json").write_text(json.dumps({"weight_map": {"a": str(text)}}))
    with pytest.raises(CheckpointError, match=r"model/text_encoder\.pt', found nothing"):
        load(folder)


def test_load_folder_with_one_file_gives_it(tmp_path, text):
    assert load(tmp_path).kind.stage == "text_encoder"
    torch.save({}, tmp_path / "other.bin")
    with pytest.raises(CheckpointError, match="got 2 weights files and no index"):
        load(tmp_path)
    convert(text, tmp_path / "text.safetensors")
    assert read_contents(tmp_path).path.name == "text.safetensors"


def test_load_legacy_format_gives_same_tensors(tmp_path):
    torch.save(weights.nested("text_encoder"), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert weights.equal(load(tmp_path / "old.pt").network, weights.network_of("text_encoder"))


def test_load_safetensors_with_unet_prefix_gives_same_tensors(tmp_path):
    nest = weights.nested("interpolation_v10")
    tensors = {f"unet.{key}": value for key, value in nest["unet"].items()}
    save_file({**tensors, "null_embedding": nest["null_embedding"]}, tmp_path / "unet.safetensors")
    loaded = load(tmp_path / "unet.safetensors", overrides=OVERRIDES)
    assert weights.equal(loaded.network, weights.network_of("interpolation_v10"))


def core_file(path, **more):
    """A U-Net as ComfyUI saves it, beside an autoencoder."""
    tensors = {f"model.diffusion_model.{key}": value for key, value in weights.nested("masked")["unet"].items()}
    save_file({**tensors, "first_stage_model.conv.weight": torch.zeros(2), **more}, path)
    return path


def test_load_file_of_core_gives_same_tensors_and_configuration(tmp_path):
    null = torch.arange(float(weights.CONFIGS["masked"].context_dim))
    packed = pack_metadata({"config": weights.CONFIGS["masked"].to_dict()})
    path = core_file(tmp_path / "core.safetensors", null_embedding=null, **{METADATA_KEY: packed})
    # Without overrides: the sizes that no shape shows are in the file.
    loaded = load(path)
    assert loaded.kind.config == weights.CONFIGS["masked"]
    assert weights.equal(loaded.network, weights.network_of("masked"))
    assert torch.equal(loaded.null_embedding, null)


@pytest.mark.parametrize("packed", [torch.tensor([123, 255], dtype=torch.uint8), torch.rand(3), torch.tensor([-1])])
def test_load_file_with_damaged_packed_metadata_raises(tmp_path, packed):
    path = core_file(tmp_path / "core.safetensors", **{METADATA_KEY: packed})
    with pytest.raises(CheckpointError, match=r"core\.safetensors"):
        load(path)


@pytest.mark.parametrize("name", ["absent.pt", "absent", "x" * 300 + ".pt", "nul\0.pt"])
def test_load_missing_path_raises(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"'{tmp_path / name}', found nothing there"):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["weights.onnx", "weights", "weights.json", "weights.zip"])
def test_load_unknown_suffix_raises(tmp_path, name):
    (tmp_path / name).write_bytes(b"1")
    with pytest.raises(CheckpointError, match=rf"\.gguf or \.index\.json, got '{tmp_path / name}'"):
        load(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(("data", "message"), [
    (b"", "an empty file"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer of 63 bytes"),
    (b"\n<!DOCTYPE html><html></html>", "a web page"),
    (b"<html><body>Sign in</body></html>", "a web page"),
    (b'{"error": "Repository not found"}', "download it again|is damaged"),
    (b"\xff" * 4096, "download it again|is damaged"),
])  # fmt: skip
def test_load_file_of_another_format_raises(tmp_path, suffix, data, message):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{path}'.*({message})"):
        load(path)


@pytest.mark.parametrize("write", [
    lambda content, path: torch.save(content, path),
    lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    lambda content, path: path.write_bytes(pickle.dumps(content)),
], ids=["zip", "legacy", "plain"])  # fmt: skip
def test_load_pickle_with_code_raises_and_runs_nothing(tmp_path, write):
    write({"unet": Code(tmp_path / "ran")}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights\.pt', got a pickle that wants to run code"):
        load(tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("content", "message"), [
    ([torch.zeros(1)], "got list"),
    (torch.zeros(1), "got Tensor"),
    ({"a": torch.zeros(2, 2).to_sparse()}, "sparse, quantized or empty one in 'a'"),
    ({"a": {"b": torch.empty(2, device="meta")}}, "sparse, quantized or empty one in 'a.b'"),
])  # fmt: skip
def test_read_content_without_plain_tensors_raises(tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=rf"odd\.pt', {message}|{message}"):
        read_contents(tmp_path / "odd.pt")


def test_read_dictionary_that_holds_itself_raises(tmp_path):
    content = {}
    content["a"] = content
    torch.save(content, tmp_path / "loop.pt")
    with pytest.raises(CheckpointError, match=r"loop\.pt.*recursion"):
        read_contents(tmp_path / "loop.pt")


def test_read_skips_what_is_no_tensor(tmp_path):
    content = {"state_dict": {"unet": {"a": torch.zeros(1)}}, "epoch": 3, "args": {"lr": [1]}, 7: torch.ones(1)}
    torch.save(content, tmp_path / "mixed.pt")
    assert sorted(read_contents(tmp_path / "mixed.pt").tensors) == ["7", "a"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_load_truncated_file_raises_at_every_length(tmp_path, text, suffix):
    convert(text, tmp_path / "text.safetensors")
    data = (text if suffix == ".pt" else tmp_path / "text.safetensors").read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for length in {*range(1, 70), *range(70, len(data), len(data) // 60), *range(len(data) - 60, len(data))}:
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=str(cut)):
            load(cut)


def damage(data, generator):
    """Flip, overwrite, cut or insert bytes, mostly near the ends, where the structure is."""
    out = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 8))):
        reach = min(generator.choice((64, 2048, len(out))), len(out))
        place = generator.choice((generator.randrange(reach), len(out) - 1 - generator.randrange(reach)))
        match generator.choice(("flip", "flip", "overwrite", "cut", "insert", "end")):
            case "flip":
                out[place] ^= 1 << generator.randrange(8)
            case "overwrite":
                out[place] = generator.randrange(256)
            case "cut":
                del out[place : place + generator.randrange(1, 64)]
            case "insert":
                out[place:place] = generator.randbytes(generator.randrange(1, 64))
            case "end":
                del out[place:]
        if not out:
            break
    return out


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    folder, files = tmp_path_factory.mktemp("small"), {}
    unet = {"dim_mult": (1,), "num_blocks": (1,), "add_cross_attention": (True,), "add_self_attention": (True,)}
    configs = {
        "text_encoder": replace(tiny.TEXT, num_layers=1),
        "movq": replace(tiny.MOVQ, ch_mult=(1,), attn_resolutions=()),
        "keyframe_v11": replace(weights.CONFIGS["keyframe_v11"], **unet),
    }
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for name, config in configs.items():
            patch.setitem(weights.CONFIGS, name, config)
        for name in (*configs, "projection"):
            path = weights.save(folder, name)
            convert(path, folder / f"{name}.safetensors", overrides=OVERRIDES)
            torch.save(weights.nested(name), folder / f"{name}_old.pt", _use_new_zipfile_serialization=False)
    for path in sorted(folder.iterdir()):
        files[path.name] = path.read_bytes()
    assert len(files) == 12
    return files


def outcome(path, overrides):
    try:
        return str(load(path, overrides=overrides).kind) + str(path)
    except CheckpointError as error:
        return str(error)


@pytest.mark.parametrize("seed", range(20))
def test_load_damaged_file_succeeds_or_raises_checkpoint_error(tmp_path, small_files, seed):
    generator = random.Random(seed)
    for name, data in small_files.items():
        path = tmp_path / name
        path.write_bytes(damage(data, generator))
        assert str(path) in outcome(path, OVERRIDES if name.endswith(".pt") else None)
