"""Which device is taken, what it computes in, and what it says of its memory."""

from types import SimpleNamespace

import pytest
import torch
from support import soroban

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.runtime import devices

CPU, SOROBAN = torch.device("cpu"), torch.device(soroban.NAME)


@pytest.mark.parametrize("missing", range(len(devices.ORDER) - 1))
def test_first_device_present_is_taken_in_the_order_of_the_list(monkeypatch, missing):
    monkeypatch.setattr(devices, "is_present", lambda kind: devices.ORDER.index(kind) >= missing)
    assert devices.first_present() == devices.ORDER[missing]


def test_devices_are_present_where_torch_says_so(monkeypatch):
    monkeypatch.setattr(torch, "npu", SimpleNamespace(is_available=lambda: True), raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert devices.is_present("npu")
    assert devices.is_present("mps")
    assert not devices.is_present("xpu")
    monkeypatch.delattr(torch, "npu")
    assert not devices.is_present("npu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_machine_without_a_card_takes_its_processor():
    assert devices.choose_device() == CPU


def test_named_device_is_taken_whatever_else_there_is():
    assert devices.choose_device("cpu") == CPU
    assert devices.choose_device(soroban.NAME).type == soroban.NAME


@pytest.mark.parametrize("name", ["xpu", "abacus", "cuda:99", "meta:x"])
def test_device_that_torch_cannot_use_is_named_with_those_of_the_machine(name):
    with pytest.raises(InputError, match=f"expected a device that torch can use, got '{name}': this machine has .*cpu"):
        devices.choose_device(name)


def test_cards_take_float16_and_processors_float32():
    assert devices.choose_dtype(CPU) is torch.float32
    assert devices.choose_dtype(SOROBAN) is torch.float16
    assert devices.choose_dtype(SOROBAN, "bfloat16") is torch.bfloat16


def test_sixteen_bits_are_taken_only_where_the_device_computes_in_them(monkeypatch):
    monkeypatch.setattr(soroban, "ABSENT", {*soroban.ABSENT, torch.bfloat16})
    assert devices.dtypes_of(SOROBAN) == ("float32", "float16")
    assert devices.wide_dtype(SOROBAN, torch.float16) is torch.float32
    with pytest.raises(InputError, match="in which a soroban computes, got bfloat16: choose float32 or float16"):
        devices.choose_dtype(SOROBAN, "bfloat16")
    monkeypatch.setattr(soroban, "ABSENT", {*soroban.ABSENT, torch.float16})
    assert devices.choose_dtype(SOROBAN) is torch.float32


def test_processors_are_faster_in_bfloat16_with_matrix_units_only(monkeypatch):
    for capabilities, quick in (({"amx_bf16": True}, (torch.bfloat16,)), ({"avx512_bf16": True}, ()), ({}, ())):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=capabilities: known, raising=False)
        assert devices.quick_dtypes(CPU) == quick
    # A torch that cannot tell is not asked twice.
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert devices.quick_dtypes(CPU) == ()


def test_cards_are_faster_in_the_16_bit_that_they_compute_in(monkeypatch):
    monkeypatch.setattr(devices, "computes_in", lambda device, dtype: dtype is not torch.bfloat16)
    assert devices.quick_dtypes(torch.device("cuda")) == (torch.float16,)


@pytest.mark.parametrize(("capability", "computes"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_bfloat16_that_torch_only_imitates_does_not_count(monkeypatch, capability, computes):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.computes_in(torch.device("cuda"), torch.bfloat16) is computes


def test_text_encoder_keeps_its_range_where_the_unets_take_float16():
    assert devices.wide_dtype(SOROBAN, torch.float16) is torch.bfloat16
    assert devices.wide_dtype(SOROBAN, torch.float32) is torch.float32


def test_memory_of_a_device_is_what_it_says():
    before, free = devices.allocated_bytes(SOROBAN), devices.free_bytes(SOROBAN)
    devices.restart_peak(SOROBAN)
    kept = torch.empty(1 << 20, dtype=torch.uint8, device=SOROBAN)
    passing = torch.empty(1 << 20, dtype=torch.uint8, device=SOROBAN)
    del passing
    devices.synchronize(SOROBAN)
    assert devices.allocated_bytes(SOROBAN) - before == kept.numel()
    assert free - devices.free_bytes(SOROBAN) == kept.numel()
    assert devices.peak_bytes(SOROBAN) - before == 2 * kept.numel()


def test_apple_says_what_it_recommends_less_what_is_taken(monkeypatch):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 100)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 30)
    assert devices.free_bytes(torch.device("mps")) == 70
    assert devices.allocated_bytes(torch.device("mps")) == 30
    assert devices.peak_bytes(torch.device("mps")) is None


def test_nobody_counts_the_memory_of_the_cpu():
    assert devices.free_bytes(CPU) is devices.peak_bytes(CPU) is devices.allocated_bytes(CPU) is None
    devices.restart_peak(CPU)
    devices.synchronize(CPU)


def test_every_type_of_device_is_described():
    rows = dict(devices.describe_devices())
    assert list(rows) == list(devices.ORDER)
    assert "threads; computes in float32" in rows["cpu"]
    assert rows["npu"] == "not found"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_free_bytes_count_the_idle_cache_of_torch():
    device = torch.device("cuda")
    before = devices.free_bytes(device)
    kept = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    during = devices.free_bytes(device)
    del kept
    assert during < before
    assert devices.free_bytes(device) == pytest.approx(before, abs=32 << 20)
