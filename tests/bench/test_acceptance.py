"""One command checks a card line by line; on a processor it does so at small sizes and says what needs a card."""

import json
from dataclasses import replace

import pytest
import torch
from support.tiny import (
    INTERPOLATION_V10,
    INTERPOLATION_V11,
    KEYFRAME_V10,
    KEYFRAME_V11,
    MOVQ,
    TEXT,
    VIDEO_MOVQ,
)

from fusionframes.ff_kernels.bench import acceptance, kernel_checks, placed_lines, room, runner, workloads
from fusionframes.ff_kernels.bench.kernel_checks import kernel_lines
from fusionframes.ff_kernels.bench.lines import FAILED, NOT_HERE, PASSED, Line, NotHereError, guarded, table
from fusionframes.ff_kernels.bench.workloads import WORKLOADS, Workload
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.ops.registry import OPERATIONS, Implementation

CPU = torch.device("cpu")
TINY = [
    Workload("keyframes-tiny", "keyframes", replace(KEYFRAME_V10, groups=4), 3, (8, 4)),
    Workload("interpolation-tiny", "interpolation", INTERPOLATION_V10, 2, (8, 4)),
    Workload("decode-tiny", "decode", MOVQ, 2, (8, 8)),
    Workload("keyframes-1.1-tiny", "keyframes", KEYFRAME_V11, 3, (8, 4)),
    Workload("interpolation-1.1-tiny", "interpolation", INTERPOLATION_V11, 2, (8, 4)),
    Workload("decode-1.1-tiny", "decode", VIDEO_MOVQ, 3, (8, 8)),
    Workload("text-tiny", "text", replace(TEXT, num_layers=6, d_model=128, d_kv=32, d_ff=256, num_heads=2), 1, (1, 40)),
]
STEPS = ("keyframes-tiny", "interpolation-tiny", "keyframes-1.1-tiny", "interpolation-1.1-tiny")


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
    for name in (*STEPS, "text-tiny"):
        assert lines[f"{name}: streamed against resident"]["verdict"] == PASSED
        assert lines[f"{name}: streamed against resident"]["figures"]["difference"] == 0
        assert ", planned" in lines[f"{name}: streamed against resident"]["measured"]
        assert "; 0.00 MB streamed" not in lines[f"{name}: streamed against resident"]["measured"]
    for name in STEPS:
        assert lines[f"{name}: recorded and replayed"]["verdict"] == NOT_HERE
    assert lines["keyframes-tiny: weights in 8 bit against 16"]["figures"]["difference"] > 0
    for workload in TINY:
        line = lines[f"{workload.name}: against the release's formulation"]
        assert line["verdict"] == PASSED
        assert line["figures"]["ratio"] > 0
        assert line["figures"]["difference"] < 1e-4
    assert len(lines) == 7 + 4 + 5 + 1


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


WRONG = {
    "keyframes-1.1-tiny": ("keyframe_step", lambda step: lambda *args: step(*args[:-1])),
    "interpolation-1.1-tiny": ("interpolation_step", lambda step: lambda *args: step(*args) * 1.01),
    "decode-1.1-tiny": ("decode_frames", lambda decode: lambda movq, x, precision: decode(movq, x.flip(0), precision)),
    "text-tiny": ("encode_text", lambda encode: lambda encoder, ids, mask: encode(encoder, ids, torch.ones_like(mask))),
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", WRONG)
def test_a_formulation_that_computes_something_else_fails_its_line(name, monkeypatch):
    function, wrong = WRONG[name]
    monkeypatch.setattr(workloads, function, wrong(getattr(workloads, function)))
    lines = by_check(acceptance.acceptance_lines(CPU, names=(name,), repeats=1))
    failed = lines[f"{name}: against the release's formulation"]
    assert failed.verdict == FAILED
    assert {line.verdict for line in lines.values() if line is not failed} <= {PASSED, NOT_HERE}


@pytest.mark.usefixtures("tiny")
def test_what_a_card_has_no_room_for_is_not_here_and_says_how_much_it_wants(monkeypatch, capsys):
    for module in (room, placed_lines):
        monkeypatch.setattr(module, "free_bytes", lambda device: 10_000)
    assert main(["bench", "--acceptance", "--repeats", "1", "--workload", "decode-1.1-tiny"]) == 0
    assert "| not here | this and the release's formulation together expected 0." in capsys.readouterr().out
    lines = by_check(acceptance.acceptance_lines(CPU, names=("keyframes-1.1-tiny",), repeats=1))
    assert {line.verdict for line in lines.values()} == {NOT_HERE}
    assert len(lines) == 3


def small_card(monkeypatch, share):
    """Give the device as much free memory as ``share`` of the text encoder needs, and no reserve."""
    monkeypatch.setattr(room, "RESERVE_BYTES", 0)
    free = int(share * room.weights_of(WORKLOADS["text-tiny"]))
    for module in (room, placed_lines):
        monkeypatch.setattr(module, "free_bytes", lambda device: free)


@pytest.mark.usefixtures("tiny")
def test_a_text_encoder_that_does_not_fit_passes_through_in_pieces(monkeypatch):
    small_card(monkeypatch, 0.99)
    lines = by_check(acceptance.acceptance_lines(CPU, names=("text-tiny",), repeats=1))
    pieces = lines["text-tiny: in pieces against the release's formulation"]
    assert lines["text-tiny: against the release's formulation"].verdict == NOT_HERE
    assert (pieces.verdict, len(lines)) == (PASSED, 2)
    assert 0 < pieces.figures["passing"] < room.weights_of(WORKLOADS["text-tiny"])
    assert pieces.figures["planned"] <= 0.99 * room.weights_of(WORKLOADS["text-tiny"])


@pytest.mark.usefixtures("tiny")
def test_pieces_that_compute_something_else_fail(monkeypatch):
    small_card(monkeypatch, 0.99)
    right = placed_lines.encode_text
    monkeypatch.setattr(placed_lines, "encode_text", lambda *args: 1.01 * right(*args))
    lines = by_check(acceptance.acceptance_lines(CPU, names=("text-tiny",), repeats=1))
    assert lines["text-tiny: in pieces against the release's formulation"].verdict == FAILED


@pytest.mark.usefixtures("tiny")
def test_without_main_memory_nothing_waits_there(monkeypatch):
    small_card(monkeypatch, 0.99)
    monkeypatch.setattr(room, "free_ram", lambda: 1 << 30)
    lines = by_check(acceptance.acceptance_lines(CPU, names=("text-tiny",), repeats=1))
    assert {line.verdict for line in lines.values()} == {NOT_HERE}
    assert "free in main memory" in lines["text-tiny: in pieces against the release's formulation"].measured


@pytest.mark.usefixtures("tiny")
def test_weights_kept_elsewhere_are_those_of_the_device():
    workload = WORKLOADS["text-tiny"]
    here, there = (workloads.make_network(workload, CPU, home=home) for home in (None, CPU))
    pairs = zip(here.state_dict().items(), there.state_dict().items(), strict=True)
    assert all(name == other and torch.equal(value, same) for (name, value), (other, same) in pairs)
    assert there.encoder.embed_tokens is there.shared


@pytest.mark.usefixtures("tiny")
def test_dtype_that_a_device_does_not_compute_in_is_not_here(monkeypatch):
    monkeypatch.setattr(room, "computes_in", lambda device, dtype: dtype is not torch.float32)
    lines = by_check(acceptance.acceptance_lines(CPU, names=("text-tiny", "keyframes-tiny"), repeats=1))
    assert {line.verdict for line in lines.values()} == {NOT_HERE}
    assert len(lines) == 2 + 4


@pytest.mark.usefixtures("tiny")
def test_weights_that_are_on_the_device_already_are_not_asked_room_for_again(monkeypatch):
    made, make_network = [], acceptance.make_network
    monkeypatch.setattr(acceptance, "make_network", lambda *args: made.append(args) or make_network(*args))
    monkeypatch.setattr(room, "free_bytes", lambda device: 1000 if made else 1 << 40)
    lines = list(acceptance.acceptance_lines(CPU, names=("text-tiny",), repeats=1))
    assert [line.verdict for line in lines] == [PASSED, PASSED]
    # Folding takes long: the network is made once for both.
    assert len(made) == 1


def test_running_out_of_memory_fails_what_was_planned_and_is_no_failure_of_the_rest():
    def full():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    def absent():
        raise NotHereError("no card")

    line = guarded("a", full)
    assert (line.verdict, line.measured) == (
        NOT_HERE, "the device ran out of memory: CUDA out of memory. Tried to allocate 2 GiB.",
    )  # fmt: skip
    assert guarded("a", full, is_planned=True).verdict == FAILED
    assert guarded("a", absent, is_planned=True) == Line("a", NOT_HERE, "no card")


def test_lines_of_the_device_are_of_all_networks_at_their_full_size():
    for names, is_full_size in ((acceptance.CARD, True), (acceptance.PROCESSOR, False)):
        chosen = [WORKLOADS[name] for name in names]
        steps = {(w.stage, w.config.family) for w in chosen if w.has_steps}
        assert steps == {(stage, family) for stage in ("keyframes", "interpolation") for family in ("1.0", "1.1")}
        assert [w.config.is_video for w in chosen if w.stage == "decode"] == [False, True]
        assert [w.stage for w in chosen][6:] == ["text"]
        assert {workload.is_full_size for workload in chosen} == {is_full_size}
