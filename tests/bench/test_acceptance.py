"""One command checks a card line by line; on a processor it does so at small sizes and says what needs a card."""

import json
from dataclasses import replace

import pytest
import torch
from support.tiny import INTERPOLATION_V10, KEYFRAME_V10, MOVQ

from fusionframes.ff_kernels.bench import acceptance, kernel_checks, runner
from fusionframes.ff_kernels.bench.kernel_checks import kernel_lines
from fusionframes.ff_kernels.bench.lines import FAILED, NOT_HERE, PASSED, Line, table
from fusionframes.ff_kernels.bench.workloads import WORKLOADS, Workload
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.ops.registry import OPERATIONS, Implementation

CPU = torch.device("cpu")
TINY = [
    Workload("keyframes-tiny", "keyframes", replace(KEYFRAME_V10, groups=4), 3, (8, 4)),
    Workload("interpolation-tiny", "interpolation", INTERPOLATION_V10, 2, (8, 4)),
    Workload("decode-tiny", "decode", MOVQ, 2, (8, 8)),
]


@pytest.fixture
def tiny(monkeypatch):
    for workload in TINY:
        monkeypatch.setitem(WORKLOADS, workload.name, workload)
    monkeypatch.setattr(acceptance, "PROCESSOR", tuple(workload.name for workload in TINY))
    monkeypatch.setattr(runner, "peak_on_cpu", lambda *args: None)
    monkeypatch.setattr(acceptance, "kernel_lines", lambda *args, **options: iter(()))


def by_check(lines):
    return {line.check: line for line in lines}


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton runs on the card here")
def test_every_kernel_is_as_exact_as_its_formula_or_says_why_it_does_not_run():
    lines = by_check(kernel_lines(CPU, is_full_size=False))
    assert {check.split(",")[0] for check in lines} == set(OPERATIONS)
    assert {line.check: line.measured for line in lines.values() if line.verdict == FAILED} == {}
    passed = {tuple(check.split(", ")[:2]) for check, line in lines.items() if line.verdict == PASSED}
    assert {("winograd_conv", "cpu"), ("nearest_conv", "cpu"), ("linear", "cpu")} <= passed
    assert lines["attend_over_time, cpu, float32"].measured == "runs by its formula"


def test_a_kernel_that_is_wrong_in_one_place_fails(monkeypatch):
    operation = OPERATIONS["nearest_conv"]

    def wrong(*args):
        out = operation.formula(*args)
        out[0, 1, 2, 3] += 1e-3
        return out

    monkeypatch.setitem(operation.implementations, "cpu", Implementation("cpu", wrong))
    line = kernel_checks._line(operation, "cpu", "float32", torch.float32, CPU, False)
    assert line.verdict == FAILED
    assert "error 1.0e-03" in line.measured


@pytest.mark.usefixtures("tiny")
def test_command_prints_a_verdict_per_line_and_keeps_them(tmp_path, capsys):
    path = tmp_path / "card.json"
    assert main(["bench", "--acceptance", "--repeats", "1", "--json", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "accepted"
    assert "recorded and replayed" in said.err
    kept = json.loads(path.read_text())
    lines = {line["check"]: line for line in kept["lines"]}
    assert kept["versions"]["torch"] == torch.__version__
    for name in ("keyframes-tiny", "interpolation-tiny"):
        assert lines[f"{name}: streamed against resident"]["verdict"] == PASSED
        assert lines[f"{name}: streamed against resident"]["figures"]["difference"] == 0
        assert lines[f"{name}: recorded and replayed"]["verdict"] == NOT_HERE
    assert lines["keyframes-tiny: weights in 8 bit against 16"]["figures"]["difference"] > 0
    assert lines["decode-tiny: against the release's formulation"]["figures"]["ratio"] > 0


@pytest.mark.usefixtures("tiny")
def test_a_budget_that_nothing_fits_fails_its_line_and_the_command(capsys):
    arguments = ["bench", "--acceptance", "--repeats", "1", "--workload", "interpolation-tiny", "--vram", "0.000001"]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "1 failed: interpolation-tiny: streamed against resident" in out
    assert "expected a budget of at least" in out


def test_options_of_the_acceptance_alone_are_refused_without_it(capsys):
    for arguments in (["--vram", "4"], ["--json", "x.json"]):
        assert main(["bench", *arguments]) == 2
        assert "with --acceptance" in capsys.readouterr().err


def test_what_is_not_here_for_one_reason_shares_a_row():
    lines = [Line("a", NOT_HERE, "needs a card"), Line("b", PASSED, "1 ms"), Line("c", NOT_HERE, "needs a card")]
    assert table(lines)[2:] == ["| b | pass | 1 ms |", "| a; c | not here | needs a card |"]
