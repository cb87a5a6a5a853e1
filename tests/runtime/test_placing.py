"""Where a plan puts weights: what only ``prepare`` reads is not there during steps, and no value changes on the way."""

import pytest
import torch
from support.tiny import KEYFRAME_V10, KEYFRAME_V11, TEXT, unet

from fusionframes.ff_kernels.bench.known_values import KnownValues
from fusionframes.ff_kernels.bench.recorder import record
from fusionframes.ff_kernels.bench.workloads import WORKLOADS, make_inputs, make_network, our_call, prepare
from fusionframes.ff_kernels.models.text_encoder import TextEncoder
from fusionframes.ff_kernels.runtime.placing import blocks_of, place
from fusionframes.ff_kernels.runtime.plan import Budget, plan_network
from fusionframes.ff_kernels.verify.cases import fill_weights


@pytest.mark.parametrize("name", ["keyframes-512", "interpolation-512"])
def test_steps_of_the_released_networks_do_not_read_a_third_of_the_parameters(name):
    workload = WORKLOADS[name]
    network = make_network(workload, torch.device("meta"))
    with torch.no_grad(), KnownValues():
        inputs = make_inputs(workload, torch.device("meta"))
        conditions = prepare(workload, network, inputs)
    visited = {p for module in network.conditioner_modules() for p in module.parameters()}
    assert sum(p.nbytes for p in visited) / sum(p.nbytes for p in network.parameters()) > 0.28
    assert record(our_call(workload, network, inputs, conditions), visited).parameter_bytes == 0


@pytest.mark.parametrize("is_smallest", [False, True])
@pytest.mark.parametrize("config", [KEYFRAME_V10, KEYFRAME_V11], ids=lambda c: c.family)
def test_inference_mode_may_place_and_everything_is_dropped_afterwards(config, is_smallest):
    with torch.inference_mode():
        network = unet(config)
        limits = Budget(is_smallest=is_smallest)
        plan = plan_network(blocks_of(network, torch.float64), limits, stacked=0, single=0)
        placed = place(network, plan, torch.device("cpu"), torch.float64)
    layer = network.to_time_embed
    dtypes = {p.dtype for p in layer.parameters()}
    seen = set()
    layer.register_forward_hook(lambda module, inputs, out: seen.update(p.dtype for p in module.parameters()))
    with torch.inference_mode(), placed:
        layer(torch.zeros(1, config.init_channels, dtype=torch.float64))
    assert seen == {torch.float64}
    assert {p.dtype for p in layer.parameters()} == dtypes == {torch.float32}


def test_words_are_looked_up_where_their_table_lies():
    encoder = fill_weights(TextEncoder(TEXT), 3)
    ids, mask = torch.tensor([[3, 5, 1]]), torch.ones(1, 3, dtype=torch.long)
    expected = encoder(ids, mask)
    table = encoder.shared.weight
    for limits in (Budget(), Budget(is_smallest=True)):
        plan = plan_network(blocks_of(encoder, torch.float32), limits, stacked=0, single=0)
        assert plan.resident + plan.passing < sum(p.nbytes for p in encoder.parameters()) - table.nbytes + 4096
        with place(encoder, plan, torch.device("cpu"), torch.float32):
            assert torch.equal(encoder(ids, mask), expected)
        assert encoder.shared.weight is table
