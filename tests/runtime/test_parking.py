import pytest
import torch
from support.tiny import INTERPOLATION_V10, INTERPOLATION_V11, KEYFRAME_V10, KEYFRAME_V11, unet
from torch import nn

from fusionframes.ff_kernels.bench.known_values import KnownValues
from fusionframes.ff_kernels.bench.recorder import record
from fusionframes.ff_kernels.bench.workloads import WORKLOADS, make_inputs, make_network, our_call, prepare
from fusionframes.ff_kernels.runtime.parking import Parked, park


def test_parameters_are_on_the_device_inside_the_block_and_themselves_outside():
    shared = nn.Linear(3, 2)
    modules = [nn.Sequential(shared, nn.SiLU()), shared, nn.Embedding(4, 3)]
    before = [dict(module.named_parameters()) for module in modules]
    parked = Parked(modules, "meta")
    for _ in range(2):
        with parked:
            assert {p.device.type for module in modules for p in module.parameters()} == {"meta"}
            assert shared.weight is modules[0][0].weight
        after = [dict(module.named_parameters()) for module in modules]
        assert all(after[i][name] is value for i, names in enumerate(before) for name, value in names.items())


def test_an_error_inside_the_block_gives_the_parameters_back():
    layer = nn.Linear(3, 2)
    weight = layer.weight
    with pytest.raises(KeyError), Parked([layer], "meta"):
        raise KeyError
    assert layer.weight is weight


def test_park_leaves_weights_on_the_cpu_and_their_names_alone():
    network = unet(KEYFRAME_V10)
    names = set(network.state_dict())
    values = {name: value.clone() for name, value in network.state_dict().items()}
    with park(network.conditioner_modules(), torch.device("cpu")):
        inside = network.state_dict()
        assert set(inside) == names
        assert all(torch.equal(inside[name], value) for name, value in values.items())
    assert {p.device.type for p in network.parameters()} == {"cpu"}


@pytest.mark.parametrize("config", [KEYFRAME_V10, KEYFRAME_V11, INTERPOLATION_V10, INTERPOLATION_V11],
                         ids=["keyframe_v10", "keyframe_v11", "interpolation_v10", "interpolation_v11"])  # fmt: skip
def test_inference_mode_may_load_and_park(config):
    with torch.inference_mode():
        network = unet(config)
        parked = park(network.conditioner_modules(), torch.device("cpu"))
    with torch.inference_mode(), parked:
        assert next(network.feature_pooling.parameters()).device.type == "cpu"


@pytest.mark.parametrize("name", ["keyframes-512", "interpolation-512"])
def test_steps_of_the_released_networks_do_not_read_a_third_of_the_parameters(name):
    workload = WORKLOADS[name]
    network = make_network(workload, torch.device("meta"))
    with torch.no_grad(), KnownValues():
        inputs = make_inputs(workload, torch.device("meta"))
        conditions = prepare(workload, network, inputs)
    parked = {p for module in network.conditioner_modules() for p in module.parameters()}
    assert sum(p.nbytes for p in parked) / sum(p.nbytes for p in network.parameters()) > 0.28
    assert record(our_call(workload, network, inputs, conditions), parked).parameter_bytes == 0
