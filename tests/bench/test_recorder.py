import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusionframes.ff_kernels.bench.counting import figure, record_reference, roofline_seconds
from fusionframes.ff_kernels.bench.known_values import KnownValues
from fusionframes.ff_kernels.bench.recorder import Cost, Recording, record
from fusionframes.ff_kernels.bench.workloads import WORKLOADS


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def summary(recording):
    return recording.launches, recording.flops, recording.bytes


def test_elementwise_operation_reads_and_writes_every_byte():
    x, y = meta(10, 7), meta(10, 7)
    assert summary(record(lambda: x + y)) == (1, 0, 3 * 280)


def test_same_tensor_given_twice_is_read_once():
    x = meta(10, 7)
    assert summary(record(lambda: x * x)) == (1, 0, 2 * 280)


def test_broadcast_input_counts_at_its_real_size():
    x, row = meta(10, 7), meta(7)
    expanded = row.expand(10, 7)
    assert record(lambda: x + row).bytes == 2 * 280 + 28
    assert record(lambda: x + expanded).bytes == 2 * 280 + 28


def test_views_and_empty_tensors_cost_nothing():
    x = meta(2, 3, 4)

    def run():
        torch.empty_like(x)
        x.new_empty(5)
        return x.flatten(1).t().unsqueeze(0).expand(6, -1, -1)[..., :1].detach().permute(2, 0, 1)

    assert summary(record(run)) == (0, 0, 0)


def test_reshape_that_copies_is_a_launch():
    x = meta(2, 3, 4)
    assert summary(record(lambda: x.transpose(1, 2).reshape(2, 12))) == (1, 0, 2 * 96)


def test_in_place_operations_write_back_and_copies_do_not_read_their_target():
    x, y = meta(10), meta(10)
    assert record(lambda: x.add_(y)).bytes == 3 * 40
    assert record(lambda: x.copy_(y)).bytes == 2 * 40
    assert record(lambda: x.zero_()).bytes == 40
    assert record(lambda: torch.add(x, y, out=meta(10))).bytes == 3 * 40


def test_write_into_part_of_a_tensor_counts_that_part():
    x, part = meta(10, 8), meta(10, 2)

    def run():
        x[:, 2:4] = part

    assert summary(record(run)) == (1, 0, 2 * 80)


def test_look_up_reads_the_rows_it_returns():
    table, rows = meta(1000, 4), meta(3, dtype=torch.long)
    assert summary(record(lambda: F.embedding(rows, table))) == (1, 0, 24 + 2 * 48)


def test_matrix_product_counts_two_flops_per_multiply_add():
    x, layer = meta(5, 8), nn.Linear(8, 3, device="meta")
    recording = record(lambda: layer(x), layer)
    assert summary(recording) == (1, 2 * 5 * 8 * 3, 4 * (5 * 8 + 8 * 3 + 3 + 5 * 3))
    assert recording.parameter_bytes == 4 * (24 + 3)


def test_convolution_counts_two_flops_per_multiply_add():
    x, layer = meta(2, 3, 8, 8, dtype=torch.float16), nn.Conv2d(3, 5, 3, padding=1, device="meta", dtype=torch.float16)
    recording = record(lambda: layer(x), layer)
    assert summary(recording) == (1, 2 * 2 * 64 * 5 * 27, 2 * (2 * 3 * 64 + 5 * 27 + 5 + 2 * 5 * 64))


def test_group_norm_reads_its_input_twice():
    x = meta(2, 8, 4, 4)
    statistics = 2 * 2 * 4 * 4
    assert summary(record(lambda: F.group_norm(x, 4))) == (1, 0, 3 * 1024 + statistics)


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_is_one_launch_whichever_backend_meta_takes(is_causal):
    query, key, value = meta(2, 4, 16, 8), meta(2, 4, 5, 8), meta(2, 4, 5, 8)
    recording = record(lambda: F.scaled_dot_product_attention(query, key, value, is_causal=is_causal))
    assert recording.launches == 1
    assert recording.flops == 2 * (2 * 4 * 16 * 5 * 8) * 2
    assert recording.bytes == 4 * (2 * 2 * 4 * 16 * 8 + 2 * 2 * 4 * 5 * 8)


def test_attention_mask_is_read():
    query, key, mask = meta(2, 4, 16, 8), meta(2, 4, 5, 8), meta(2, 1, 1, 5, dtype=torch.bool)
    plain = record(lambda: F.scaled_dot_product_attention(query, key, key)).bytes
    masked = record(lambda: F.scaled_dot_product_attention(query, key, key, attn_mask=mask)).bytes
    assert masked == plain + 10


def test_parameter_read_twice_counts_once_and_views_count_as_their_part():
    layer, x = nn.Linear(8, 6, bias=False, device="meta"), meta(4, 8)
    assert record(lambda: (layer(x), layer(x)), layer).parameter_bytes == 4 * 48
    assert record(lambda: x @ layer.weight[:2].t(), layer).parameter_bytes == 4 * 16
    assert record(lambda: layer.weight.half(), [layer.weight]).parameter_bytes == 4 * 48
    assert record(lambda: x + 1, layer).parameter_bytes == 0


def test_peak_counts_what_lives_at_one_time():
    x = meta(100)

    def freed():
        y = x + 1
        y = y + 1
        y = y + 1
        return y.sum()

    def kept():
        a = x + 1
        b = a + 1
        return b + 1, a, b

    assert record(freed).peak_bytes == 800
    assert record(kept).peak_bytes == 1200
    assert record(lambda: (x + 1).view(10, 10)[2:]).peak_bytes == 400


def test_peak_leaves_out_parameters_and_inputs():
    layer, x = nn.Linear(8, 6, bias=False, device="meta"), meta(4, 8)
    assert record(lambda: layer(x), layer).peak_bytes == 4 * 24


def test_composite_operations_are_counted_by_their_parts_in_inference_mode():
    layer, x = nn.Linear(8, 6, device="meta"), meta(2, 4, 8)

    def run():
        with torch.inference_mode():
            return F.linear(x, layer.weight, layer.bias)

    recording = record(run, layer)
    assert (recording.launches, recording.flops) == (1, 2 * 8 * 8 * 6)


def test_own_operation_costs_what_it_states(monkeypatch):
    from fusionframes.ff_kernels.ops import registry

    library = torch.library.Library("fusionframes_test", "DEF")
    library.define("doubled(Tensor x) -> Tensor")
    torch.library.register_fake("fusionframes_test::doubled", torch.empty_like, lib=library)
    doubled, x = torch.ops.fusionframes_test.doubled, meta(10)
    assert summary(record(lambda: doubled(x))) == (1, 0, 80)
    monkeypatch.setattr(registry, "cost_of", lambda *call: Cost("any", 3, 7, 11))
    assert summary(record(lambda: doubled(x))) == (3, 7, 11)


def test_table_sums_each_operation_and_sorts_by_bytes():
    recording = Recording([Cost("a", 1, 2, 3), Cost("b", 1, 0, 50), Cost("a", 2, 4, 6)])
    assert recording.by_operation() == [Cost("b", 1, 0, 50), Cost("a", 3, 6, 9)]


def test_roofline_takes_the_larger_bound_of_every_operation():
    recording = Recording([Cost("a", 1, 100, 1), Cost("b", 1, 0, 50)])
    assert recording.seconds(10, 5) == 100 / 10 + 50 / 5
    assert roofline_seconds(recording, "some other card") is None


def test_known_values_answers_for_small_meta_tensors():
    with torch.no_grad(), KnownValues():
        mask = torch.ones(2, 5, dtype=torch.long, device="meta")
        mask[:, 3:] = 0
        valid = mask.bool().any(dim=0).nonzero()
        assert valid.device.type == "meta"
        assert int(valid.max()) == 2
        assert mask.cpu().sum().item() == 6
        assert mask.shape == (2, 5)
        big = torch.ones(100, 1000, device="meta")
        with pytest.raises((RuntimeError, NotImplementedError)):
            big.sum().item()


# Counted from the authors' own classes on the meta device, to one decimal; "share" is how far a count may be off: the
# steps here also stack the branches and embed positions (17 launches more).
RELEASE = [
    ("keyframes-512", "flops", 29.60e12, 0.001),
    ("keyframes-512", "bytes", 393.5e9, 0.001),
    ("keyframes-512", "launches", 5402, 0.005),
    ("keyframes-512", "parameter_bytes", 8.29e9, 0.001),
    ("keyframes-512", "peak_bytes", 2.1e9, 0.02),
    ("keyframes-640x384", "flops", 27.78e12, 0.001),
    ("keyframes-640x384", "bytes", 368.9e9, 0.001),
    ("interpolation-512", "flops", 31.86e12, 0.001),
    ("interpolation-512", "bytes", 269.8e9, 0.001),
    ("interpolation-512", "launches", 4162, 0.006),
    ("interpolation-512", "peak_bytes", 1.9e9, 0.06),
    ("decode-512", "flops", 7.71e12, 0.002),
    ("decode-512", "bytes", 67.5e9, 0.001),
    ("decode-512", "peak_bytes", 10.8e9, 0.01),
    ("decode-640x384", "flops", 7.21e12, 0.002),
    ("decode-640x384", "bytes", 63.2e9, 0.002),
]


@pytest.fixture(scope="module")
def release():
    found = {}

    def get(name):
        if name not in found:
            found[name] = record_reference(WORKLOADS[name])
        return found[name]

    return get


@pytest.mark.parametrize(("name", "key", "expected", "share"), RELEASE, ids=[f"{row[0]}-{row[1]}" for row in RELEASE])
def test_release_formulation_costs_what_the_authors_code_costs(release, name, key, expected, share):
    assert figure(release(name), key, WORKLOADS[name]) == pytest.approx(expected, rel=share)


@pytest.mark.parametrize(
    ("name", "device", "milliseconds"),
    [("keyframes-512", "H200", 119.7), ("keyframes-512", "4090", 532.3), ("interpolation-512", "H200", 94.4)],
)
def test_release_roofline_is_that_of_the_authors_code(release, name, device, milliseconds):
    assert roofline_seconds(release(name), f"NVIDIA {device}") * 1e3 == pytest.approx(milliseconds, rel=0.002)
