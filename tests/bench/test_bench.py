import csv
import json
from dataclasses import replace

import pytest
import torch
from support.tiny import INTERPOLATION_V10, KEYFRAME_V10, MOVQ

from fusionframes.ff_kernels.bench import runner, workloads
from fusionframes.ff_kernels.bench.workloads import WORKLOADS, Workload
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.runtime.graph import Graphs

KEYS = {"workload", "ours_seconds", "reference_seconds", "ratio", "ours_peak_mb", "reference_peak_mb", "device",
        "versions"}  # fmt: skip
TINY = [
    Workload("keyframes-tiny", "keyframes", replace(KEYFRAME_V10, groups=4), 3, (8, 4)),
    Workload("interpolation-tiny", "interpolation", INTERPOLATION_V10, 2, (8, 4)),
    Workload("decode-tiny", "decode", MOVQ, 5, (8, 8)),
]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for workload in TINY:
        monkeypatch.setitem(WORKLOADS, workload.name, workload)


@pytest.fixture
def no_children(monkeypatch):
    monkeypatch.setattr(runner, "peak_on_cpu", lambda *args: None)


def run(capsys, *arguments):
    status = main(["bench", *arguments])
    return status, capsys.readouterr()


def test_bench_json_has_every_key_and_measures_memory(capsys):
    status, said = run(capsys, "--workload", "decode-tiny", "--repeats", "1", "--json")
    (line,) = said.out.splitlines()
    row = json.loads(line)
    assert status == 0
    assert row.keys() >= KEYS
    assert row["workload"] == "decode-tiny"
    assert row["ratio"] == pytest.approx(row["reference_seconds"] / row["ours_seconds"])
    assert row["versions"]["torch"] == torch.__version__
    if row["ours_peak_mb"] is not None:
        assert 0 < row["ours_peak_mb"] < 1000
        assert 0 < row["reference_peak_mb"] < 1000


def test_bench_history_gets_a_line_per_workload_and_run(capsys, tmp_path, no_children):
    history = tmp_path / "bench.csv"
    arguments = ["--workload", "keyframes-tiny", "--workload", "interpolation-tiny", "--repeats", "1"]
    for _ in range(2):
        assert run(capsys, *arguments, "--history", str(history))[0] == 0
    rows = list(csv.DictReader(history.read_text().splitlines()))
    assert [row["workload"] for row in rows] == ["keyframes-tiny", "interpolation-tiny"] * 2
    assert all(float(row["ratio"]) > 0 and float(row["difference"]) < 1e-3 for row in rows)
    assert "torch=" in rows[0]["versions"]


def test_bench_text_says_what_a_second_is_of(capsys, no_children):
    _, said = run(capsys, "--workload", "keyframes-tiny", "--repeats", "1")
    assert "one step, both branches of 3 keyframes of 8x4 latents" in said.out
    assert "prepare, once per run of 50 steps" in said.out


def test_bench_writes_no_history_unless_asked(capsys, tmp_path, monkeypatch, no_children):
    monkeypatch.chdir(tmp_path)
    run(capsys, "--workload", "decode-tiny", "--repeats", "1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_bench_gpu_workload_without_a_gpu_names_it_and_says_what_to_do(capsys):
    status, said = run(capsys, "--workload", "keyframes-512")
    assert status == 2
    assert "'keyframes-512'" in said.err
    assert "--record" in said.err
    assert said.err.count("\n") == 1


def test_bench_unknown_workload_lists_the_known_ones(capsys):
    status, said = run(capsys, "--workload", "keyframe")
    assert status == 2
    assert "'keyframe'" in said.err
    assert "keyframes-cpu" in said.err


def test_bench_missing_history_folder_is_found_before_measuring(capsys, tmp_path):
    status, said = run(capsys, "--workload", "keyframes-cpu", "--history", str(tmp_path / "none" / "bench.csv"))
    assert status == 2
    assert "none" in said.err


def test_bench_zero_repeats_is_refused(capsys):
    assert run(capsys, "--repeats", "0")[0] == 2


def test_bench_record_prints_figures_and_targets(capsys):
    status, said = run(capsys, "--record", "--workload", "decode-512")
    assert status == 0
    assert "67.5" in said.out
    assert "<= 12.0" in said.out
    status, said = run(capsys, "--record", "--workload", "decode-512", "--json")
    assert {json.loads(line)["figure"] for line in said.out.splitlines()} >= {"bytes", "peak_bytes", "launches"}


def test_bench_record_refuses_a_small_workload():
    from fusionframes.ff_kernels.bench.counting import full_size

    with pytest.raises(InputError, match="decode-cpu"):
        full_size(["decode-cpu"])


def test_measure_refuses_outputs_that_differ(monkeypatch, no_children):
    monkeypatch.setattr(runner, "reference_call", lambda *args: lambda: torch.ones(5, 3, 16, 16))
    with pytest.raises(runner.DisagreementError, match="decode-tiny"):
        runner.measure(WORKLOADS["decode-tiny"], 1)


def test_choose_default_fits_the_machine(monkeypatch):
    for workload in TINY:
        monkeypatch.delitem(WORKLOADS, workload.name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    names = [workload.name for workload in runner.choose(None)]
    assert names == ["keyframes-cpu", "interpolation-cpu", "decode-cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    names = [workload.name for workload in runner.choose(None)]
    assert {"keyframes-512", "decode-1.1-512", "text-ul2"} <= set(names)
    assert len(names) == 10


def test_make_network_gives_the_same_weights_again_and_keeps_the_scale():
    first, second = (workloads.make_network(WORKLOADS["keyframes-tiny"], torch.device("cpu")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.in_layer.weight.std() == pytest.approx(first.in_layer.weight[0].numel() ** -0.5, rel=0.2)


@pytest.mark.parametrize("name", ["keyframes-tiny", "interpolation-tiny"])
def test_recorded_step_is_the_launched_one(name):
    """The recording itself needs a CUDA device; this stand-in replays into the same memory, as a graph does."""

    def capture(function):
        out = function().clone()
        return lambda: out.copy_(function())

    workload, device = WORKLOADS[name], torch.device("cpu")
    with torch.inference_mode():
        network = workloads.make_ready(workloads.make_network(workload, device))
        inputs = workloads.make_inputs(workload, device)
        conditions = workloads.prepare(workload, network, inputs)
        launched = workloads.our_call(workload, network, inputs, conditions)()
        recorded = workloads.our_call(workload, network, inputs, conditions, Graphs(capture))
        assert torch.equal(recorded(), launched)
        assert torch.equal(recorded(), launched)


def test_share_of_the_roofline_is_that_of_the_authors_code_whatever_the_mode(monkeypatch):
    monkeypatch.setattr(runner, "name_of", lambda device: "NVIDIA H200")
    with torch.inference_mode():
        shares = runner._shares(WORKLOADS["keyframes-512"], [1.0, 1.0], torch.device("cuda"))
    # The roofline of the authors' own operations on an H200.
    assert shares[1] == pytest.approx(0.1197, rel=0.002)
    assert 0 < shares[0] < 0.5 * shares[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_measure_on_a_gpu_reports_shares_and_peaks(monkeypatch):
    workload = replace(WORKLOADS["keyframes-tiny"], is_full_size=True)
    result = runner.measure(workload, 1)
    assert result.ours_peak_mb > 0
    assert result.ratio > 0
