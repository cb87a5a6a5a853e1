"""A conversion that is killed leaves a hidden file that the next one clears; one that is told to end leaves nothing."""

import os
import signal
import subprocess
import sys

import pytest

from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo import WEIGHTS

SOURCE = WEIGHTS / "text_encoders" / "fusionframes_demo_text_encoder.safetensors"
# Converts, and waits when half of the file is written.
CHILD = """
import sys, time
from fusionframes.ff_kernels.checkpoints import conversion
from fusionframes.ff_kernels.cli.main import main
slices = conversion._slices
written = []
def stop(tensor, dtype):
    yield from slices(tensor, dtype)
    written.append(tensor)
    if len(written) == 20:
        print("half", flush=True)
        time.sleep(600)
conversion._slices = stop
sys.exit(main(["convert", *sys.argv[1:]]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("ends", "left", "form"),
    [("SIGKILL", 1, ["--quant", "int8"]), ("SIGTERM", 0, [])],
    ids=["killed", "told_to_end"],
)
def test_what_an_ended_conversion_leaves_is_hidden_and_gone_after_the_next(tmp_path, capsys, form, ends, left):
    ends = getattr(signal, ends)
    target = tmp_path / "out.safetensors"
    arguments = [str(SOURCE), str(target), *form]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:  # fmt: skip
        assert child.stdout.readline() == "half\n"
        child.send_signal(ends)
        said = child.communicate()[1]
    found = list(tmp_path.iterdir())
    assert len(found) == left
    assert all(path.name.startswith(".ff-") for path in found)
    assert child.returncode == (-ends if ends == signal.SIGKILL else 128 + ends)
    assert ends == signal.SIGKILL or said == "fusionframes: interrupted; nothing was written\n"
    assert main(["convert", *arguments]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert "text encoder" in capsys.readouterr().out
