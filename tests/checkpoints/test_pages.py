"""Pages of a mapped file that were read and are not needed again leave the memory of the process."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import weights

from fusionframes.ff_kernels.checkpoints import pages
from fusionframes.ff_kernels.checkpoints.detection import detect, split_tensors
from fusionframes.ff_kernels.checkpoints.folder import ModelFiles
from fusionframes.ff_kernels.checkpoints.folding import Target
from fusionframes.ff_kernels.checkpoints.loading import load_as_stored
from fusionframes.ff_kernels.checkpoints.reading import read_contents
from fusionframes.ff_kernels.pipeline.needs import Need
from fusionframes.ff_kernels.pipeline.networks import Networks
from fusionframes.ff_kernels.runtime.plan import Budget

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are let go of on Linux only")


def mapped_bytes(path: Path) -> int:
    """Bytes of a file that lie in the memory of this process."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE)
    found = [re.search(r"^Rss:\s+(\d+) kB", part, re.MULTILINE) for part in parts if str(path) in part]
    return 1024 * sum(int(row[1]) for row in found)


def on_disk(path: Path) -> Path:
    """A file that was written down: only such pages can be let go of, and none of a file system in memory."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    kind = max(
        (line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()),
        key=lambda row: len(row[1]) if path.is_relative_to(row[1]) else -1,
    )[2]
    if kind in ("tmpfs", "ramfs"):
        pytest.skip("temporary files lie in memory here")
    return path


@linux_only
def test_pages_that_are_let_go_of_leave_memory_and_hold_what_they_held(tmp_path):
    values = torch.arange(8_000_000, dtype=torch.float32)
    path = tmp_path / "large.safetensors"
    save_file({"a": values}, path)
    contents = read_contents(on_disk(path))
    assert contents.tensors["a"].sum() == values.sum()
    assert mapped_bytes(path) > 0.9 * values.nbytes
    pages.page_out(contents.tensors["a"])
    assert mapped_bytes(path) < 0.1 * values.nbytes
    assert torch.equal(contents.tensors["a"], values)


@pytest.fixture
def gone(monkeypatch):
    """Places in memory of what was let go of."""
    places = set()
    monkeypatch.setattr(pages, "page_out", lambda values: places.add(values.data_ptr()))
    return places


@pytest.mark.parametrize("name", ["keyframe_v10", "keyframe_v11", "interpolation_v10"])
def test_all_that_folding_has_read_is_let_go_of(tmp_path, gone, name):
    contents = read_contents(weights.save(tmp_path, name))
    target, done = Target(torch.device("cpu"), torch.float32), pages.let_go_of(contents)
    kind = detect(contents, weights.OVERRIDES)
    network, _ = load_as_stored(contents, kind, target=target, parity="fast", done=done)
    kept = {value.data_ptr() for value in network.parameters()}
    named = {contents.tensors[name].data_ptr() for name in split_tensors(contents)[0]}
    assert named - kept
    assert named - kept <= gone
    gone.clear()
    load_as_stored(contents, kind, target=target, parity="fast")
    assert not gone


def test_only_pages_of_the_file_are_let_go_of(tmp_path, gone):
    contents = read_contents(weights.save(tmp_path, "keyframe_v10"))
    name, other = list(contents.tensors)[:2]
    changed = contents.tensors[other].clone()
    contents = replace(contents, tensors={**contents.tensors, other: changed}, changed=frozenset({other}))
    mapped = contents.tensors[name]
    pages.let_go_of(contents)([mapped, changed, torch.ones(5000), mapped.to("meta")])
    assert gone == {mapped.data_ptr()}


@pytest.mark.parametrize("ram", [0, 10**10])
def test_weights_that_wait_in_their_file_are_not_left_in_memory_as_well(tmp_path, gone, ram):
    contents = read_contents(weights.save(tmp_path, "keyframe_v10"))
    kind = detect(contents, weights.OVERRIDES)
    models = ModelFiles(tmp_path, "1.0", {"keyframe": (contents, kind)}, tmp_path)
    room = 0.5 * sum(value.nbytes for value in contents.tensors.values())
    budget = Budget(int(room), ram)
    networks = Networks(models, torch.device("cpu"), torch.float32, "strict", keeps_all=False, budget=budget)
    placed = networks.placed("keyframe", lambda network: Need(10, 10))
    assert placed.plan.waiting == ("memory" if ram else "file")
    named = {contents.tensors[name].data_ptr() for name in split_tensors(contents)[0]}
    assert gone & named == (set() if ram else named)
