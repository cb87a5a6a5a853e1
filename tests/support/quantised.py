"""Copies of weights files whose linear layers lie in core's quantised formats, made by core's own functions."""

import importlib
import json
import shutil

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FORMATS = {
    "float8_e4m3fn": ("TensorCoreFP8E4M3Layout", {"scale": "recalculate"}),
    "mxfp8": ("TensorCoreMXFP8Layout", {}),
    "nvfp4": ("TensorCoreNVFP4Layout", {"scale": "recalculate"}),
    "int8_tensorwise": ("TensorWiseINT8Layout", {"per_channel": True}),
}
TABLES = ("shared.weight", "skip_embeddings.weight", "relative_attention_bias.weight")


def read(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)


def known_formats():
    """Formats that the core under test can make."""
    return importlib.import_module("comfy.quant_ops").QUANT_ALGOS


def linear_names(tensors, multiple=32):
    """Layers whose weights are matrices of whole blocks."""
    fits = [k for k, v in tensors.items() if v.ndim == 2 and not any(side % multiple for side in v.shape)]
    return [k.removesuffix(".weight") for k in fits if k.endswith(".weight") and not k.endswith(TABLES)]


def quantise(tensors, names, form, told=None):
    """Put the weights of layers into a format; returns the tensors without markers, and what the markers say."""
    quantised = importlib.import_module("comfy.quant_ops").QuantizedTensor
    layout, options = FORMATS[form]
    out = dict(tensors)
    for name in names:
        weight = out.pop(f"{name}.weight").float()
        out.update(quantised.from_float(weight, layout, **options).state_dict(f"{name}.weight"))
    return out, {name: {"format": form, **(told or {})} for name in names}


def with_markers(tensors, layers):
    marks = {
        f"{k}.comfy_quant": torch.tensor(list(json.dumps(v).encode()), dtype=torch.uint8) for k, v in layers.items()
    }
    return {**tensors, **marks}


def in_header(layers):
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


class Folder:
    """One of core's model folders, to write copies of its files into."""

    def __init__(self, core, key, source):
        self.core, self.path = core, core.base / "models" / key
        self.path.mkdir(exist_ok=True, parents=True)
        self.source = core.module("nodes._compat").file_path(key, source)
        self.tensors, self.metadata = read(self.source)
        if key == "text_encoders" and not (self.path / "spiece.model").exists():
            shutil.copy(self.source.parent / "spiece.model", self.path)

    def write(self, name, tensors, extra=None):
        file = f"{name}.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()}, self.path / file, {**self.metadata, **(extra or {})})
        self.core.folder_paths.filename_list_cache.clear()
        return file

    def quantised(self, form, names=None):
        return self.write(form, with_markers(*quantise(self.tensors, names or linear_names(self.tensors), form)))


def kept_layers(module):
    """How many weights of a module are in a quantised format of core's."""
    quantised = importlib.import_module("comfy.quant_ops").QuantizedTensor
    return sum(isinstance(parameter, quantised) for parameter in module.parameters())


def decibels(found, wanted):
    """Signal to noise."""
    return float(10 * torch.log10(wanted.double().square().mean() / (found - wanted).double().square().mean()))
