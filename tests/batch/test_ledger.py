import os
import time

import pytest

from fusionframes.ff_kernels.batch import ledger as ledger_module
from fusionframes.ff_kernels.batch.ledger import Ledger, worker_name
from fusionframes.ff_kernels.errors import InputError


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "batch")


def test_clip_is_done_when_its_record_is_whole(ledger):
    ledger.video("abcd").parent.mkdir(parents=True)
    ledger.video("abcd").write_bytes(b"half a video")
    assert not ledger.is_done("abcd")
    ledger.commit("abcd", {"prompt": "a"})
    assert ledger.is_done("abcd")
    assert [record["prompt"] for record in ledger.records()] == ["a"]


@pytest.mark.parametrize("kept", [0, 1, 0.5, 0.9])
def test_truncated_record_counts_as_missing(ledger, kept):
    ledger.commit("abcd", {"prompt": "a"})
    path = ledger.video("abcd").with_suffix(".json")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else 1])
    assert not ledger.is_done("abcd")
    assert list(ledger.records()) == []


def test_record_of_another_key_counts_as_missing(ledger):
    ledger.commit("abcd", {"prompt": "a"})
    ledger.video("abcd").with_suffix(".json").rename(ledger.video("abce").with_suffix(".json"))
    assert not ledger.is_done("abce")


def test_commit_forgets_the_failure(ledger):
    ledger.fail("abcd", {"error": "e"})
    assert [failure["key"] for failure in ledger.failures()] == ["abcd"]
    ledger.commit("abcd", {})
    assert list(ledger.failures()) == []
    assert ledger.failure("abcd") is None


def test_sweep_removes_what_the_dead_left_and_spares_the_living(ledger, monkeypatch):
    mine = ledger.workplace(worker_name("worker0", 0))
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)
    dead = ledger.workplace(worker_name("worker0", 0))
    monkeypatch.setattr(ledger_module, "HOST", "elsewhere")
    far, far_and_old = (ledger.workplace(worker_name("worker0", number)) for number in (0, 1))
    for place in (mine, dead, far, far_and_old):
        place.mkdir(parents=True)
        (place / "beat").touch()
    past = time.time() - 2 * ledger_module.ABANDONED_SECONDS
    for path in (far_and_old / "beat", far_and_old):
        os.utime(path, (past, past))
    monkeypatch.undo()
    assert ledger.sweep() == 2
    assert [place.exists() for place in (mine, dead, far, far_and_old)] == [True, False, True, False]


def test_output_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(InputError, match="taken"):
        Ledger(tmp_path / "taken")
