"""Several processes that train one model, on the CPU by Gloo: what one of them alone would have trained."""

import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from support.line import NoisyLine, draw_line, started
from support.processes import COMMON, CONFIG, train_as_one_of

from fusionframes.ff_kernels.demo import ninth
from fusionframes.ff_kernels.training.loop import train
from fusionframes.ff_kernels.training.processes import Processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32", reason="needs a torch that joins processes by Gloo"
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_PORT", str(free_port()))
        torch.multiprocessing.start_processes(train_as_one_of, (2, folder), nprocs=2, start_method="spawn")
    return folder, [torch.load(folder / f"seen_{rank}.pt", weights_only=True) for rank in range(2)]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_two_processes_train_what_one_trains_with_all_batches(seen, tmp_path):
    _, (first, second) = seen
    with torch.enable_grad():
        alone = train(started(NoisyLine), draw_line, CONFIG, tmp_path / "alone.pt", **COMMON)
    assert same(first["whole"], second["whole"])
    assert all(torch.allclose(alone[key], first["whole"][key], rtol=0, atol=1e-5) for key in alone)
    assert alone["net.weight"].item() == pytest.approx(3, abs=0.2)


def test_a_stop_of_one_process_stops_all_after_the_same_step_and_they_go_on_bit_for_bit(seen):
    _, (first, second) = seen
    assert same(first["resumed"], first["whole"])
    assert same(second["resumed"], first["whole"])


def test_a_loss_that_is_no_number_in_one_process_stops_all_with_the_step_before_it_kept(seen):
    folder, (first, second) = seen
    assert first["nan"] == second["nan"]
    assert "finite loss and gradient" in first["nan"]
    state = torch.load(folder / "nan.pt", weights_only=True)
    assert f"state of step {state['step']} is kept" in first["nan"]
    assert all(value.isfinite().all() for value in state["weights"].values())


def test_processes_that_share_no_folder_are_told_so(seen):
    folder, both = seen
    assert all("let them share that folder" in each["unshared"] for each in both)
    assert not (folder / "of_1.pt").exists()


def test_batches_that_do_not_go_round_are_refused(seen):
    _, both = seen
    assert all("multiple of the 2 processes, which share the batches" in each["uneven"] for each in both)
    assert list(Processes().share(3)) == [0, 1, 2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    ninth.write_clips(folder, 4, is_new=True)
    return folder


def launched(arguments, count):
    """Start the command as torchrun does, with no more threads than the machine has cores."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "fusionframes.ff_kernels", "train", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_command_under_torchrun_writes_what_one_process_writes(clips, tmp_path):
    options = ("--source-fps", 2, "--rank", 2, "--steps", 3, "--accumulate", 2, "--device", "cpu")
    written = []
    for count in (2, 1):
        output = tmp_path / f"of_{count}.safetensors"
        process = launched([clips, "-o", output, *options], count)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert out.count("MB after 3 steps") == 1
        assert (tmp_path / f"of_{count}.training" / "log.csv").read_text().count("\n") == 4
        written.append(load_file(output))
    assert all(torch.allclose(value, written[1][key], rtol=0, atol=1e-5) for key, value in written[0].items())
    assert any(value.abs().max() > 1e-5 for key, value in written[0].items() if "lora_up" in key)
