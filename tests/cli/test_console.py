"""What is printed never fails a finished job, and a process that is told to end leaves nothing behind."""

import io
import os
import signal
import sys
import warnings

import pytest

from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.media import video

QUICK = ["--steps", "1", "--fps", "low"]
PROMPT = "a large red circle"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_generate_prints_any_name_on_any_console(tmp_path, monkeypatch, encoding):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))
    name = tmp_path / "\u51fa\u529b.gif"
    assert main(["generate", PROMPT, "-o", str(name), *QUICK]) == 0
    assert name.stat().st_size > 0
    expected = "\\u51fa\\u529b.gif" if encoding != "utf-8" else name.name
    assert expected in printed.getvalue().decode(encoding)


class Gone(io.TextIOWrapper):
    """A console whose reader left, or whose disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device")], ids=["pipe", "disk"])
def test_generate_is_finished_though_nobody_can_read_it(tmp_path, monkeypatch, error):
    monkeypatch.setattr(sys, "stdout", Gone(error))
    assert main(["generate", PROMPT, "-o", str(tmp_path / "o.gif"), *QUICK]) == 0
    assert (tmp_path / "o.gif").stat().st_size > 0


def test_generate_without_a_console_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["generate", PROMPT, "-o", str(tmp_path / "o.gif"), *QUICK]) == 0


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_generate_that_is_told_to_end_leaves_nothing(tmp_path, monkeypatch, capsys, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def write(pixels, path, fps):
        path.write_bytes(b"half")
        signal.raise_signal(number)

    monkeypatch.setattr(video, "_write_gif", write)
    signal.signal(number, signal.SIG_DFL)
    try:
        assert main(["generate", PROMPT, "-o", str(tmp_path / "o.gif"), *QUICK]) == 128 + number
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["a caf\udce9"], [PROMPT, "--negative", "\udce9"]])
def test_generate_prompt_of_other_bytes_is_one_sentence(tmp_path, capsys, arguments):
    assert main(["generate", *arguments, "-o", str(tmp_path / "o.gif"), *QUICK]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fusionframes: ")]
    assert "valid Unicode" in line


def test_generate_counts_what_is_cut_off_a_negative_prompt(tmp_path, capsys):
    arguments = ["generate", "a", "-o", str(tmp_path / "o.gif"), *QUICK, "--negative", "a large blue square"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(arguments) == 0
    assert "fusionframes: the negative prompt is cut to the 3 tokens" in capsys.readouterr().err
    assert main([*arguments, "--mend"]) == 0
