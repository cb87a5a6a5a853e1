"""Files are written whole or not at all."""

import os
import subprocess
import sys

import pytest

from fusionframes.ff_kernels.errors import InputError, OutputError
from fusionframes.ff_kernels.files import atomic_path


def test_atomic_path_replaces_only_at_the_end(tmp_path):
    target = tmp_path / "weights.safetensors"
    target.write_bytes(b"old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".safetensors"
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == [target.name]


def test_atomic_path_block_that_writes_nothing_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"could not write '.*a.png'"), atomic_path(target):
        pass
    assert target.read_bytes() == b"old"


def test_atomic_path_own_errors_pass_unchanged(tmp_path):
    def write_half():
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_bytes(b"half")
            raise InputError("a value")

    with pytest.raises(InputError, match=r"^a value$"):
        write_half()
    assert os.listdir(tmp_path) == []


needs_links = pytest.mark.skipif(os.name == "nt", reason="links and processes of POSIX")


@needs_links
def test_atomic_path_follows_a_link_and_keeps_it(tmp_path):
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "latest.mp4", tmp_path / "far" / "real.mp4"
    link.symlink_to(target)
    for content in (b"new", b"newer"):
        with atomic_path(link) as temporary:
            temporary.write_bytes(content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert os.listdir(tmp_path / "far") == ["real.mp4"]
    with pytest.raises(OutputError), atomic_path(link):
        pass
    assert target.read_bytes() == b"newer"


@needs_links
def test_next_write_clears_what_a_killed_process_left_and_nothing_else(tmp_path):
    code = (
        "import os, pathlib, sys; from fusionframes.ff_kernels.files import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as path: path.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "weights.safetensors"], check=False)
    (left,) = os.listdir(tmp_path)
    with atomic_path(tmp_path / "other.png") as living:
        living.write_bytes(b"other")
        assert not (tmp_path / left).exists()
        kept = [tmp_path / ".ff-notes", tmp_path / left.replace(".ff-", ".ff-x")]
        for path in kept:
            path.write_bytes(b"mine")
        with atomic_path(tmp_path / "third.png") as temporary:
            temporary.write_bytes(b"third")
        assert living.exists()
    assert sorted(os.listdir(tmp_path)) == sorted([*(path.name for path in kept), "other.png", "third.png"])
