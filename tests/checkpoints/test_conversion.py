import errno
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from support import weights
from support.tiny import TEXT
from support.weights import CONFIGS, OVERRIDES

from fusionframes.ff_kernels.checkpoints import conversion
from fusionframes.ff_kernels.checkpoints.conversion import convert
from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.checkpoints.loading import build_network, load
from fusionframes.ff_kernels.errors import CheckpointError, OutputError

# The high-water mark of this process alone; ru_maxrss of a child starts at what its parent had.
MEASURE = """
import sys, torch
from fusionframes.ff_kernels.checkpoints.conversion import convert
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
# What torch imports at first use (with Triton installed 60 MB more) is not the conversion's memory.
convert(sys.argv[3], sys.argv[3] + ".safetensors", dtype=torch.float16)
start = peak()
convert(sys.argv[1], sys.argv[2], dtype=torch.float16)
print(peak() - start)
"""


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "keyframe_v11_plain"])
def test_convert_then_load_gives_same_config_and_tensors(tmp_path, name):
    target = tmp_path / "out.safetensors"
    source = weights.save(tmp_path, name)
    before = load(source, overrides=OVERRIDES)
    for dtype in (None, torch.float16):
        kind, after = convert(source, target, dtype=dtype, overrides=OVERRIDES), load(target)
        assert (kind, kind.config) == (after.kind, after.kind.config) == (before.kind, CONFIGS[name])
        for left, right in ((before.network, after.network), (before.projection, after.projection)):
            assert (left is None) == (right is None)
            assert left is None or weights.equal(left.to(dtype), right)
        if before.null_embedding is not None:
            assert torch.equal(before.null_embedding, after.null_embedding)


def test_convert_projection_file_keeps_both_projections(tmp_path):
    source, target = weights.save(tmp_path, "projection"), tmp_path / "out.safetensors"
    assert convert(source, target).stage == "projection"
    assert weights.equal(load(source).projection, load(target).projection)
    with safe_open(target, framework="pt") as file:
        assert torch.equal(file.get_tensor("projection_interpolation.0.weight"), weights.projection(2)["0.weight"])


def test_convert_metadata_holds_family_stage_and_config(tmp_path):
    target = tmp_path / "out.safetensors"
    convert(weights.save(tmp_path, "keyframe_v11"), target, overrides={**OVERRIDES, "num_frames": 5})
    with safe_open(target, framework="pt") as file:
        metadata = json.loads(file.metadata()["fusionframes"])
    assert (metadata["family"], metadata["stage"]) == ("1.1", "keyframe")
    assert metadata["config"] == replace(CONFIGS["keyframe_v11"], num_frames=5).to_dict()
    assert load(target).kind.config.num_frames == 5


def test_convert_mixed_dtypes_aligns_every_tensor(tmp_path):
    nest = weights.nested("interpolation_v10")
    nest["unet"] = {key: value.half() if key == "skip_merge" else value for key, value in nest["unet"].items()}
    nest["unet"] = {"skip_merge": nest["unet"].pop("skip_merge"), **nest["unet"]}
    torch.save(nest, tmp_path / "mixed.pt")
    convert(tmp_path / "mixed.pt", tmp_path / "out.safetensors", overrides=OVERRIDES)
    data = (tmp_path / "out.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    widths, begins = {"F32": 4, "F16": 2}, 8 + int.from_bytes(data[:8], "little")
    places = {k: (v["data_offsets"], widths[v["dtype"]]) for k, v in header.items() if k != "__metadata__"}
    assert all((begins + start) % width == 0 for (start, _), width in places.values())
    # In the file, as that is what is mapped: tensors of whole multiples lie at multiples of what a processor likes.
    even = [begins + start for (start, stop), _ in places.values() if (stop - start) % 64 == 0]
    assert len(even) > 100
    assert not [place for place in even if place % 64]
    assert load(tmp_path / "out.safetensors").network.skip_merge.dtype == torch.float16


def test_convert_strided_and_large_tensors_in_slices_keeps_values(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "SLICE_BYTES", 100)
    state = {key: value.T.contiguous().T if value.ndim == 2 else value
             for key, value in weights.nested("text_encoder").items()}  # fmt: skip
    torch.save(state, tmp_path / "text.pt")
    convert(tmp_path / "text.pt", tmp_path / "out.safetensors")
    assert weights.equal(load(tmp_path / "out.safetensors").network, weights.network_of("text_encoder"))


def test_convert_onto_its_source_replaces_it(tmp_path):
    target = tmp_path / "out.safetensors"
    convert(weights.save(tmp_path, "text_encoder"), target)
    convert(target, target, dtype=torch.float16)
    assert load(target).network.shared.weight.dtype == torch.float16


@pytest.mark.parametrize("name", ["out.pt", "out", "out.safetensors.bak"])
def test_convert_to_another_suffix_raises(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"got '{tmp_path / name}'"):
        convert(weights.save(tmp_path, "text_encoder"), tmp_path / name)


def test_convert_to_dtype_that_is_not_written_raises(tmp_path):
    with pytest.raises(CheckpointError, match=r"torch\.float8_e4m3fn"):
        convert(weights.save(tmp_path, "text_encoder"), tmp_path / "out.safetensors", dtype=torch.float8_e4m3fn)
    assert [path.name for path in tmp_path.iterdir()] == ["text_encoder.pt"]


@pytest.mark.parametrize("change", [{"unet": {"in_layer.weight": torch.zeros(2)}}, {"null_embedding": torch.zeros(3)},
                                    {"projections": {"t5.0.weight": torch.zeros(3)}}])  # fmt: skip
def test_convert_incomplete_source_raises_and_writes_nothing(tmp_path, change):
    torch.save({**weights.nested("keyframe_v10"), **change}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        convert(tmp_path / "bad.pt", tmp_path / "out.safetensors", overrides=OVERRIDES)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt"]


@pytest.mark.parametrize("before", [None, b"the file that was there"], ids=["new", "existing"])
@pytest.mark.parametrize(("failure", "expected", "message"), [
    (OSError(errno.ENOSPC, "No space left on device"), OutputError, r"out\.safetensors': no space left"),
    (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
])  # fmt: skip
def test_convert_failing_midway_leaves_nothing_behind(tmp_path, monkeypatch, before, failure, expected, message):
    source, target = weights.save(tmp_path, "text_encoder"), tmp_path / "out.safetensors"
    if before:
        target.write_bytes(before)
    slices = []

    def fail_at_the_fifth(part):
        slices.append(part)
        if len(slices) == 5:
            raise failure

    monkeypatch.setattr(conversion, "page_out", fail_at_the_fifth)
    with pytest.raises(expected, match=message):
        convert(source, target)
    assert len(slices) == 5
    assert {path.name for path in tmp_path.iterdir()} == {source.name} | ({target.name} if before else set())
    assert before is None or target.read_bytes() == before


def test_convert_into_missing_folder_raises(tmp_path):
    with pytest.raises(OutputError, match=f"{tmp_path / 'absent'}"):
        convert(weights.save(tmp_path, "text_encoder"), tmp_path / "absent" / "out.safetensors")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are let go of on Linux only")
def test_convert_large_file_needs_little_memory(tmp_path):
    source, target = tmp_path / "big.pt", tmp_path / "big.safetensors"
    config = replace(TEXT, vocab_size=100_000, d_model=256, d_ff=100_000, num_layers=1)
    network = build_network(Kind("text_encoder", "", config), device="meta")
    state = {key: torch.zeros(value.shape) for key, value in network.state_dict().items()}
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    largest = max(tensor.nbytes for tensor in state.values())
    try:
        torch.save(state, source)
        assert source.stat().st_size > 400e6
        command = [sys.executable, "-c", MEASURE, str(source), str(target), str(weights.save(tmp_path, "text_encoder"))]
        growth = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    finally:
        for path in (source, target):
            path.unlink(missing_ok=True)
    assert growth < 1.2 * largest + 150e6
