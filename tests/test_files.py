"""Files are written whole or not at all."""

import os

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
