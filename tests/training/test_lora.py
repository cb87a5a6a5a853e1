"""LoRA factors on a U-Net: which layers take them, that they start as nothing and come out as files merge them."""

import pytest
import torch
from support import tiny
from torch.nn.utils import parametrize

from fusionframes.ff_kernels.checkpoints.conversion import write_checkpoint
from fusionframes.ff_kernels.checkpoints.detection import Kind
from fusionframes.ff_kernels.checkpoints.lora import merge_lora, read_lora, write_lora
from fusionframes.ff_kernels.checkpoints.reading import read_contents
from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.training.lora import LAYERS, attach_lora, detach_factors, lora_layers

UNETS = {
    "v10": tiny.KEYFRAME_V10,
    "v11": tiny.KEYFRAME_V11,
    "gaps_v10": tiny.INTERPOLATION_V10,
    "gaps_v11": tiny.INTERPOLATION_V11,
}


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_every_choice_of_layers_leaves_the_conditioner_alone(config):
    unet = tiny.unet(config)
    conditioner = {id(inner) for module in unet.conditioner_modules() for inner in module.modules()}
    found = {layers: lora_layers(unet, layers) for layers in LAYERS}
    assert not any(id(module) in conditioner for layers in found.values() for module in layers.values())
    assert all("temporal" in name for name in found["temporal"])
    assert {name.rpartition(".")[2] for name in found["attention"]} <= {
        "to_query",
        "to_key",
        "to_value",
        "output_layer",
    }
    assert found["temporal"].keys() | found["attention"].keys() < found["all"].keys()
    matrices = {
        name for name, module in unet.named_modules() if getattr(getattr(module, "weight", None), "ndim", 0) > 1
    }
    assert found["all"].keys() == {name for name in matrices if id(unet.get_submodule(name)) not in conditioner}


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_factors_start_as_nothing_and_only_they_train(config):
    plain, unet = tiny.unet(config), tiny.unet(config)
    attach_lora(unet, "all", 2)
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"up", "down"}
    for name, module in unet.named_modules():
        if parametrize.is_parametrized(module):
            assert torch.equal(module.weight, plain.get_submodule(name).weight)


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_trained_factors_written_and_merged_are_the_weights_that_trained(tmp_path, config):
    unet, kind = tiny.unet(config), Kind(config.stage, config.family, config)
    write_checkpoint(tmp_path / "base.safetensors", kind, unet.state_dict(), None)
    layers = attach_lora(unet, "temporal", 3, scale=0.5)
    with torch.no_grad():
        for i, (name, parameter) in enumerate(unet.named_parameters()):
            if name.endswith(".up"):
                parameter.copy_(tiny.draw(*parameter.shape, seed=i))
    trained = {f"unet.{name}": p.detach() for name, p in unet.named_parameters() if p.requires_grad}
    factors = detach_factors(trained, "unet.")
    assert factors.keys() == layers.keys()
    write_lora(tmp_path / "lora.safetensors", factors, 0.5, kind, {})
    merged = merge_lora(read_contents(tmp_path / "base.safetensors"), read_lora(tmp_path / "lora.safetensors"), 1.0)
    for name, module in layers.items():
        assert torch.allclose(merged.tensors[f"{name}.weight"], module.weight, atol=1e-6)


def test_words_and_ranks_that_make_no_lora_are_refused():
    with pytest.raises(InputError, match=r"layers as one of temporal, attention, all, got 'some'"):
        attach_lora(tiny.unet(tiny.KEYFRAME_V10), "some", 2)
    with pytest.raises(InputError, match="rank of 1 or more, got 0"):
        attach_lora(tiny.unet(tiny.KEYFRAME_V10), "all", 0)
