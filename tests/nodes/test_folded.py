"""Folded networks for core, without core: their names, their numbers, and that they are loaded whole."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.no_core import adapter
from support.tiny import KEYFRAME_V10, unet

from fusionframes.ff_kernels.checkpoints import folding
from fusionframes.ff_kernels.checkpoints.folding import Target, fold
from fusionframes.ff_kernels.checkpoints.loading import tensors_of
from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.models.keyframe_unet import KeyframeUNet

folded = adapter("folded")


@pytest.fixture(scope="module")
def network():
    return unet(KEYFRAME_V10).eval()


class Patcher:
    """As much of core's as ``WholePatcher`` asks for; it keeps what it was asked to load."""

    def load(self, *args, **kwargs):
        self.asked = args, kwargs

    def partially_unload(self, *args):
        return 7

    def set_injections(self, key, injections):
        self.injected = key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filled_network_has_the_numbers_of_the_command_line_s(network, monkeypatch, dtype):
    monkeypatch.setattr(folded, "archive_dtypes", lambda module: None)
    stored, target = copy.deepcopy(network).half(), Target(torch.device("cpu"), dtype)
    ours = KeyframeUNet(network.config, device="meta")
    folded.fill_folded(ours, stored.state_dict(), target)
    theirs = fold(stored, target).to(dtype).state_dict()
    assert ours.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())
    assert {parameter.dtype for parameter in ours.parameters()} == {dtype}


def test_network_of_a_folded_file_has_the_numbers_of_folding_at_load(network, monkeypatch):
    monkeypatch.setattr(folded, "archive_dtypes", lambda module: None)
    monkeypatch.setattr(folding, "WINOGRAD_CHANNELS", 16)
    target = Target(torch.device("cpu"), torch.float32)
    ours, theirs, rounded = (KeyframeUNet(network.config, device="meta") for _ in range(3))
    filed = tensors_of(fold(copy.deepcopy(network), replace(target, is_portable=True)))
    folded.fill_from_folded(ours, filed, target)
    folded.fill_folded(theirs, network.state_dict(), target)
    wanted = tensors_of(theirs)
    assert tensors_of(ours).keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in tensors_of(ours).items())
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    # The command line runs a file of weights in 8 bit with its plain convolutions.
    folded.fill_from_folded(rounded, filed, target, is_exact=False)
    assert any(isinstance(module, folding.WinogradConv) for module in ours.modules())
    assert not any(isinstance(module, folding.WinogradConv) for module in rounded.modules())


def test_refusal_says_which_file_or_choice_takes_what_goes_by_name():
    errors = []
    for is_filed in (False, True):
        with pytest.raises(InputError) as caught:
            folded.refuse_named(SimpleNamespace(model=SimpleNamespace(is_filed_folded=is_filed)))
        errors.append(str(caught.value))
    assert errors[0].endswith('got folded ones: choose "as released" in FusionFrames Load Model')
    assert errors[1].endswith("which cannot be turned back: load the file that it was made from")


@pytest.mark.parametrize("way", ["names", "positions"])
def test_released_names_are_listed_as_a_module_lists_its_own(network, way):
    tensors, before = network.state_dict(), {"other": torch.zeros(1)}
    call = ((before, "unet.", False), {}) if way == "positions" else ((), {"destination": before, "prefix": "unet."})
    out = folded.list_released(tensors, *call[0], **call[1])
    assert out is before
    assert out.keys() == {"other", *(f"unet.{name}" for name in tensors)}
    assert folded.list_released(tensors) == tensors


@pytest.mark.parametrize("pages", [True, False])
def test_plain_patcher_loads_and_frees_all_and_a_paging_one_as_core_says(monkeypatch, pages):
    monkeypatch.setattr(folded, "is_dynamic", lambda patcher: pages)
    patcher = Patcher()
    patcher.__class__ = folded._whole(Patcher)
    patcher.load("device", lowvram_model_memory=5)
    assert patcher.asked == (("device",), {"lowvram_model_memory": 5} if pages else {"full_load": True})
    assert patcher.partially_unload("device", 3) == (7 if pages else 0)


def test_injections_other_than_a_lora_s_are_taken():
    patcher = Patcher()
    patcher.__class__ = folded._whole(Patcher)
    patcher.set_injections("attention", [])
    assert patcher.injected == "attention"
