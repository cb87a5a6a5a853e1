import json

import pytest
import torch
from support import weights
from support.weights import OVERRIDES

from fusionframes.ff_kernels.checkpoints.conversion import convert
from fusionframes.ff_kernels.checkpoints.folder import find_models
from fusionframes.ff_kernels.errors import CheckpointError, InputError

RELEASE = {"a.pt": "keyframe_v11", "b.ckpt": "interpolation_v11", "c.PTH": "video_movq", "d.bin": "movq",
           "e.pt": "text_encoder", "f.pt": "projection"}  # fmt: skip


def fill(folder, files, tokenizer=True):
    folder.mkdir(exist_ok=True)
    for file_name, name in files.items():
        weights.save(folder, name, file_name)
    if tokenizer:
        (folder / "spiece.model").write_bytes(b"")
    return folder


def found(folder):
    return {stage: contents.path.name for stage, (contents, _) in find_models(folder, OVERRIDES).files.items()}


def test_find_models_sorts_a_complete_folder_by_content(tmp_path):
    models = find_models(str(fill(tmp_path, RELEASE)), OVERRIDES)
    assert (models.folder, models.family, models.tokenizer) == (tmp_path, "1.1", tmp_path / "spiece.model")
    names = {stage: contents.path.name for stage, (contents, _) in models.files.items()}
    assert names == {"keyframe": "a.pt", "interpolation": "b.ckpt", "video_movq": "c.PTH", "movq": "d.bin",
                     "text_encoder": "e.pt", "projection": "f.pt"}  # fmt: skip
    assert models.require("keyframe")[1].config == weights.CONFIGS["keyframe_v11"]


def test_find_models_reads_converted_files_without_overrides(tmp_path):
    source = weights.save(tmp_path, "keyframe_v10")
    fill(tmp_path / "model", {})
    convert(source, tmp_path / "model" / "any.safetensors", overrides=OVERRIDES)
    assert find_models(tmp_path / "model").require("keyframe")[1].config == weights.CONFIGS["keyframe_v10"]


def test_find_models_looks_into_subfolders_once(tmp_path):
    fill(tmp_path, {"t2v.pt": "keyframe_v11"}, tokenizer=False)
    fill(tmp_path / "text", {"x.pt": "text_encoder"})
    (tmp_path / "text" / "deep").mkdir()
    weights.save(tmp_path / "text" / "deep", "movq")
    assert found(tmp_path) == {"keyframe": "t2v.pt", "text_encoder": "x.pt"}
    assert find_models(tmp_path, OVERRIDES).tokenizer == tmp_path / "text" / "spiece.model"


def test_find_models_finds_single_files_beside_shards(tmp_path):
    fill(tmp_path, {"t2v.pt": "keyframe_v11"})
    state = weights.nested("text_encoder")
    for suffix in ("bin", "safetensors"):
        files = {key: f"model-{i % 2}.{suffix}" for i, key in enumerate(state)}
        (tmp_path / f"model.{suffix}.index.json").write_text(json.dumps({"weight_map": files}))
    for i in range(2):
        part = {key: value for j, (key, value) in enumerate(state.items()) if j % 2 == i}
        torch.save(part, tmp_path / f"model-{i}.bin")
    with pytest.raises(CheckpointError, match=r"model-0\.safetensors', found nothing"):
        found(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert found(tmp_path) == {"keyframe": "t2v.pt", "text_encoder": "model.bin.index.json"}


def test_find_models_leaves_hidden_and_other_files_out(tmp_path):
    fill(tmp_path, {"t2v.pt": "keyframe_v11"})
    (tmp_path / ".cache").mkdir()
    for name in ("._t2v.pt", ".cache/x.pt", "README.md", "clip.mp4", "config.json"):
        (tmp_path / name).write_bytes(b"no weights")
    assert found(tmp_path) == {"keyframe": "t2v.pt"}


def test_find_models_two_files_of_a_stage_raises(tmp_path):
    fill(tmp_path, {"one.pt": "keyframe_v11", "two.pt": "keyframe_v10"})
    with pytest.raises(CheckpointError, match=r"one file with a keyframe U-Net .* got 'one\.pt' and 'two\.pt'"):
        find_models(tmp_path, OVERRIDES)


def test_find_models_without_keyframe_network_raises(tmp_path):
    fill(tmp_path, {"movq.pt": "movq"})
    with pytest.raises(CheckpointError, match=r"a keyframe U-Net .* put kandinsky_video\.pt .* or t2v\.pt"):
        find_models(tmp_path, OVERRIDES)


@pytest.mark.parametrize(("keyframe", "other", "file"), [
    ("keyframe_v10", "interpolation_v11", r"kandinsky_video_interpolation\.pt"),
    ("keyframe_v11", "interpolation_v10", r"interpolation\.pt of \S*_1_1"),
])  # fmt: skip
def test_find_models_of_two_families_raises_naming_the_right_file(tmp_path, keyframe, other, file):
    fill(tmp_path, {"a.pt": keyframe, "b.pt": other})
    family = weights.CONFIGS[keyframe].family
    with pytest.raises(CheckpointError, match=rf"of release {family} beside .* \('b\.pt'\): take {file}"):
        find_models(tmp_path, OVERRIDES)


def test_find_models_without_tokenizer_raises(tmp_path):
    fill(tmp_path, {"a.pt": "keyframe_v10"}, tokenizer=False)
    with pytest.raises(CheckpointError, match=r"spiece\.model .*google/flan-ul2"):
        find_models(tmp_path, OVERRIDES)


@pytest.mark.parametrize(("stage", "file"), [
    ("interpolation", r"kandinsky_video_interpolation\.pt"), ("movq", r"movq\.pt of either"),
    ("text_encoder", r"the encoder of huggingface\.co/google/flan-ul2"),
])  # fmt: skip
def test_require_absent_stage_raises_naming_its_file(tmp_path, stage, file):
    models = find_models(fill(tmp_path, {"a.pt": "keyframe_v10"}), OVERRIDES)
    with pytest.raises(CheckpointError, match=rf"of release 1\.0 in '{tmp_path}', found none: put {file}"):
        models.require(stage)


def test_find_models_with_a_damaged_file_raises_naming_it(tmp_path):
    fill(tmp_path, {"a.pt": "keyframe_v10"})
    (tmp_path / "b.safetensors").write_bytes(b"\x08" * 40)
    with pytest.raises(CheckpointError, match=r"b\.safetensors"):
        find_models(tmp_path, OVERRIDES)


def test_find_models_of_no_folder_raises(tmp_path):
    with pytest.raises(InputError, match=f"no folder at '{tmp_path / 'absent'}'"):
        find_models(tmp_path / "absent")
