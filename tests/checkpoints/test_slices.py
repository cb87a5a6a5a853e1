"""Where tensors lie in a file, and what is said when the file is no longer what it was."""

import json

import pytest
import torch
from safetensors.torch import save_file
from support.tiny import draw

from fusionframes.ff_kernels.checkpoints.reading import read_contents
from fusionframes.ff_kernels.checkpoints.slices import slices_beside, slices_of
from fusionframes.ff_kernels.errors import CheckpointError

TENSORS = {"unet.a": draw(3, 5), "unet.b": draw(4).half(), "null_embedding": draw(2, 2).bfloat16()}


def test_slices_read_what_the_file_holds_under_the_names_of_its_contents(tmp_path):
    save_file(TENSORS, tmp_path / "one.safetensors")
    contents, slices = read_contents(tmp_path / "one.safetensors"), slices_beside(tmp_path / "one.safetensors")
    assert set(slices) == set(contents.tensors) == {"a", "b", "null_embedding"}
    for name, value in contents.tensors.items():
        for dtype in (value.dtype, torch.float64):
            out = torch.empty(value.shape, dtype=dtype)
            slices[name].write_into(out)
            assert torch.equal(out, value.to(dtype))


def test_slices_of_shards_are_those_of_all_of_them(tmp_path):
    shards = {"x.safetensors": {"a": draw(2)}, "y.safetensors": {"b": draw(3)}}
    for name, tensors in shards.items():
        save_file(tensors, tmp_path / name)
    weight_map = {key: name for name, tensors in shards.items() for key in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    slices = slices_beside(tmp_path / "model.safetensors.index.json")
    assert {key: value.file.path.name for key, value in slices.items()} == weight_map


def test_a_file_of_another_format_has_no_slices(tmp_path):
    torch.save({"a": draw(2)}, tmp_path / "one.pt")
    assert slices_beside(tmp_path / "one.pt") == {}


@pytest.mark.parametrize("header", [b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]", b'\x04\0\0\0\0\0\0\0{"a"', b"\1"])
def test_a_damaged_header_is_named(tmp_path, header):
    (tmp_path / "one.safetensors").write_bytes(header)
    with pytest.raises(CheckpointError, match=r"header that says where tensors lie in .*one\.safetensors"):
        slices_of(tmp_path / "one.safetensors")


def test_a_header_that_promises_more_than_the_file_has_is_found_when_read(tmp_path):
    path = tmp_path / "one.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-8])
    # The last tensor of the file, which has lost its end.
    last = max(slices_of(path).values(), key=lambda value: value.start)
    out = torch.empty(last.shape, dtype=last.dtype)
    with pytest.raises(CheckpointError, match=r"expected \d+ bytes at .*one\.safetensors.*got \d+: download it again"):
        last.write_into(out)
