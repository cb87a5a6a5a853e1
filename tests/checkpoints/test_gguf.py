"""Text encoders in GGUF give the contexts of the encoder they were made from, by either naming, streamed or not."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import TEXT

from fusionframes.ff_kernels.checkpoints import gguf_file
from fusionframes.ff_kernels.checkpoints.conversion import convert
from fusionframes.ff_kernels.checkpoints.detection import Kind, detect
from fusionframes.ff_kernels.checkpoints.folder import find_models
from fusionframes.ff_kernels.checkpoints.loading import build_network, load
from fusionframes.ff_kernels.checkpoints.reading import Contents, read_contents
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo import WEIGHTS
from fusionframes.ff_kernels.demo.model import DEFAULTS
from fusionframes.ff_kernels.errors import CheckpointError
from fusionframes.ff_kernels.models.configs import FLAN_UL2
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.runtime.plan import Budget
from fusionframes.ff_kernels.verify.cases import fill_weights

gguf = pytest.importorskip("gguf")
ENCODER = WEIGHTS / "text_encoders" / "fusionframes_demo_text_encoder.safetensors"
PROMPT = "a small yellow square moves right on a black background"
# Ours to llama.cpp's, written down apart from the reader's own table.
PARTS = {
    "SelfAttention.q": "attn_q", "SelfAttention.k": "attn_k", "SelfAttention.v": "attn_v", "SelfAttention.o": "attn_o",
    "SelfAttention.relative_attention_bias": "attn_rel_b", "layer.0.layer_norm": "attn_norm",
    "layer.1.layer_norm": "ffn_norm", "DenseReluDense.wi_0": "ffn_gate", "DenseReluDense.wi_1": "ffn_up",
    "DenseReluDense.wo": "ffn_down",
}  # fmt: skip


def llama_name(name: str) -> str:
    top = {"shared.weight": "token_embd.weight", "encoder.final_layer_norm.weight": "enc.output_norm.weight"}
    if name in top:
        return top[name]
    part = next(short for ours, short in PARTS.items() if f"{ours}.weight" in name)
    return f"enc.blk.{name.split('.')[2]}.{part}.weight"


def write(path: Path, tensors: dict[str, torch.Tensor], layout: str, naming=lambda name: name) -> Path:
    """Write tensors; those of two axes in blocks of a layout."""
    writer, kind = gguf.GGUFWriter(str(path), "t5encoder"), gguf.GGMLQuantizationType[layout]
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        if tensor.ndim == 2 and values.shape[1] % 32 == 0 and layout != "F32":
            writer.add_tensor(naming(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(naming(name), values)
    # llama.cpp keeps the other half of the model; it is not ours to read.
    writer.add_tensor("dec.blk.0.attn_q.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def demo_tensors() -> dict[str, torch.Tensor]:
    return load_file(ENCODER)


def contexts(text_encoder: Path | None, **options) -> torch.Tensor:
    pipeline = Pipeline(find_models(WEIGHTS, text_encoder=text_encoder), defaults=DEFAULTS, **options)
    return pipeline.encode_text([PROMPT]).context


def decibels(out: torch.Tensor, exact: torch.Tensor) -> float:
    return (10 * torch.log10(exact.square().sum() / (out - exact).square().sum())).item()


@pytest.mark.parametrize("naming", [llama_name, str], ids=["llama.cpp", "hugging_face"])
@pytest.mark.parametrize(("layout", "least"), [("F32", None), ("F16", None), ("BF16", 48), ("Q8_0", 40), ("Q4_0", 14)])
def test_contexts_are_those_of_the_encoder(tmp_path, layout, least, naming):
    path, exact = write(tmp_path / "text.gguf", demo_tensors(), layout, naming), contexts(None)
    out = contexts(path)
    if least is None:
        assert torch.equal(out, exact)
    else:
        assert least < decibels(out, exact) < least + 4
    assert torch.equal(contexts(path, budget=Budget(is_smallest=True)), out)
    assert detect(read_contents(path)).config == detect(read_contents(ENCODER)).config


def k_blocks(rows: int, columns: int) -> np.ndarray:
    """Blocks of Q6_K as other programs write them: 256 values in 208 bytes of bits and scales and a float16."""
    made = np.random.default_rng(0)
    blocks = made.integers(0, 256, (rows, columns // 256, 210), dtype=np.uint8)
    blocks[..., 192:208] = made.integers(1, 20, blocks[..., 192:208].shape, dtype=np.uint8)
    blocks[..., 208:] = np.frombuffer(np.float16(2e-4).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def test_blocks_of_256_are_widened_as_the_package_does(tmp_path):
    config = replace(TEXT, d_model=256, d_ff=512, num_heads=4, d_kv=64, num_layers=1)
    tensors = dict(fill_weights(build_network(Kind("text_encoder", "", config)), 1).state_dict())
    tensors.pop("encoder.embed_tokens.weight")
    name, kind = "encoder.block.0.layer.1.DenseReluDense.wo.weight", gguf.GGMLQuantizationType.Q6_K
    raw = k_blocks(256, 512)
    writer = gguf.GGUFWriter(str(tmp_path / "text.gguf"), "t5encoder")
    for key, tensor in tensors.items():
        if key == name:
            writer.add_tensor(key, raw, raw_dtype=kind)
        else:
            writer.add_tensor(key, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors[name] = torch.from_numpy(gguf.quants.dequantize(raw, kind))
    assert tensors[name].std() > 0.01
    save_file(tensors, tmp_path / "wide.safetensors")
    ids = torch.arange(5)[None]
    outs = [load(tmp_path / file).network(ids, torch.ones(1, 5)) for file in ("text.gguf", "wide.safetensors")]
    assert torch.equal(*outs)


def test_a_folder_may_hold_the_encoder_in_gguf(tmp_path, capsys):
    for path in WEIGHTS.rglob("*.*"):
        if path != ENCODER:
            shutil.copy(path, tmp_path)
    path = write(tmp_path / "text.gguf", demo_tensors(), "Q8_0", llama_name)
    pipeline = Pipeline(find_models(tmp_path), defaults=DEFAULTS)
    assert torch.equal(pipeline.encode_text([PROMPT]).context, contexts(path))
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "a T5 text encoder" in said
    assert "Q8_0 (" in said
    with pytest.raises(CheckpointError, match=r"for a conversion, got \d+ tensors in Q8_0"):
        convert(path, tmp_path / "text.safetensors")


def test_without_the_package_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    path = write(tmp_path / "text.gguf", demo_tensors(), "F16")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"install fusionframes\[gguf\]"):
        read_contents(path)


def test_a_cut_file_is_damaged_and_another_network_is_named(tmp_path, capsys):
    path = write(tmp_path / "text.gguf", demo_tensors(), "Q8_0")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"complete weights.*download it again"):
        read_contents(path)
    with pytest.raises(CheckpointError, match=r"a T5 text encoder in .*got an image MoVQ"):
        find_models(WEIGHTS, text_encoder=WEIGHTS / "vae" / "fusionframes_demo_movq.safetensors")
    assert main(["generate", PROMPT, "-o", str(tmp_path / "o.mp4"), "--text-encoder", str(ENCODER)]) == 2
    assert "--text-encoder with --model" in capsys.readouterr().err


def test_the_encoder_of_other_models_is_refused_by_name():
    def sizes(config) -> Contents:
        state = build_network(Kind("text_encoder", "", config), device="meta").state_dict()
        return Contents(Path("t5.gguf"), dict(state), {})

    xxl = replace(FLAN_UL2, num_layers=24, num_heads=64, d_kv=64, d_ff=10240)
    with pytest.raises(CheckpointError, match=r"expected Flan-UL2 .* got T5-XXL, which other models read \(24 blocks"):
        detect(sizes(xxl))
    assert detect(sizes(FLAN_UL2)).config == FLAN_UL2
    assert gguf_file.SUFFIX == ".gguf"
