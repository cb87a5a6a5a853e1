"""Everything about recorded steps but the recording itself, which needs a CUDA device."""

import pytest
import torch

from fusionframes.ff_kernels.errors import DeviceError
from fusionframes.ff_kernels.runtime.graph import CudaCapture, Graphs

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class StandIn:
    """Records as CUDA does, on the CPU: results land in the same memory, inputs are read where they first lay."""

    def __init__(self):
        self.recorded = self.replays = 0

    def __call__(self, function):
        self.recorded += 1
        out = function()

        def replay():
            self.replays += 1
            out.copy_(function())
            return out

        return replay


def test_replay_equals_the_function_and_records_once():
    capture = StandIn()
    function = Graphs(capture).replayed(lambda x, row: x * row)
    for i in range(3):
        x, row = torch.full((2, 3), float(i)), torch.arange(3.0) + i
        assert torch.equal(function(x, row), x * row)
    assert (capture.recorded, capture.replays) == (1, 3)


def test_replay_reads_its_own_buffers_and_leaves_the_inputs_alone():
    seen = []
    function = Graphs(StandIn()).replayed(lambda x: seen.append(x.data_ptr()) or x + 1)
    inputs = [torch.zeros(4), torch.ones(4)]
    outs = [function(x).clone() for x in inputs]
    assert len(set(seen)) == 1
    assert seen[0] not in {x.data_ptr() for x in inputs}
    assert [out[0].item() for out in outs] == [1, 2]
    assert [x[0].item() for x in inputs] == [0, 1]


def test_layout_of_the_first_input_is_kept():
    function = Graphs(StandIn()).replayed(lambda x: x * 2)
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert function(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(function(x.contiguous()), x * 2)


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, dtype=torch.float64)])
def test_other_shape_or_dtype_is_refused(other):
    function = Graphs(StandIn()).replayed(lambda x: x + 1)
    function(torch.zeros(2))
    with pytest.raises(DeviceError, match=r"expected tensors \[\(\(2,\), torch.float32\)\]"):
        function(other)


def test_failed_recording_warns_once_and_runs_the_function_itself():
    def refuse(function):
        raise DeviceError("the step could not be recorded")

    function = Graphs(refuse).replayed(lambda x: x + 1)
    with pytest.warns(UserWarning, match="could not be recorded; this run goes on without graphs"):
        assert function(torch.zeros(2)).tolist() == [1, 1]
    assert function(torch.ones(2)).tolist() == [2, 2]


@ON_CUDA
def test_recorded_graph_replays_on_new_inputs():
    device = torch.device("cuda")
    graphs = Graphs(CudaCapture(device))
    functions = [graphs.replayed(lambda x, k=k: (x * k).sin()) for k in (1, 2)]
    for _ in range(3):
        x = torch.randn(100, device=device)
        outs = [function(x) for function in functions]
        for k, out in zip((1, 2), outs, strict=True):
            assert torch.equal(out, (x * k).sin())


@ON_CUDA
def test_work_that_cannot_be_recorded_on_cuda_runs_without_graphs():
    function = Graphs(CudaCapture(torch.device("cuda"))).replayed(lambda x: x * x.sum().item())
    with pytest.warns(UserWarning, match="goes on without graphs"):
        assert function(torch.ones(3, device="cuda")).sum().item() == 9
