import errno
import json
import os
import signal
import threading
from pathlib import Path

import pytest
from support.batch_engine import no_engine, obedient

from fusionframes.ff_kernels.batch.ledger import Ledger
from fusionframes.ff_kernels.batch.rules import BatchError, Breaker, Failure, Rules
from fusionframes.ff_kernels.batch.run import WorkerOptions, run_batch
from fusionframes.ff_kernels.batch.work import REFUSED, Task


def run(folder: Path, prompts: list[str], count: int = 1, **options):
    (folder / "p.txt").write_text("\n".join(prompts))
    output = folder / "out"
    retry = options.pop("retry_failed", False)
    watch = options.pop("watch", None)
    workers = WorkerOptions(count, engine=obedient(output), **options)
    return run_batch(folder / "p.txt", output, workers=workers, retry_failed=retry, watch=watch), Ledger(output)


def tries(ledger: Ledger) -> list[list[str]]:
    return [line.split() for line in (ledger.folder / "tries.txt").read_text().splitlines()]


def events(ledger: Ledger, name: str) -> list[dict]:
    return [e for e in map(json.loads, ledger.events.read_text().splitlines()) if e["event"] == name]


def errors(ledger: Ledger) -> dict[str, str]:
    return {failure["prompt"]: failure["error"] for failure in ledger.failures()}


def test_crashing_prompt_fails_after_exactly_two_workers_and_stops_nothing(tmp_path):
    result, ledger = run(tmp_path, ["good 1", "crash", "good 2", "good 3"], count=2)
    assert (result.done, result.failed, result.status) == (3, 1, 1)
    assert sum(word == "crash" for _, word, _ in tries(ledger)) == 2
    assert errors(ledger) == {"crash": "the worker died twice over this row; at last its process ended with status 3"}
    assert len(events(ledger, "worker lost")) == 2
    assert not (ledger.folder / "work").exists()


def test_hanging_prompt_costs_its_worker_and_a_slow_one_with_signs_of_life_does_not(tmp_path):
    result, ledger = run(tmp_path, ["slow", "hang", "good"], count=2, patience=2.0)
    assert (result.done, result.failed) == (2, 1)
    assert "gave no sign for 2 seconds" in errors(ledger)["hang"]
    assert sum(word == "slow" for _, word, _ in tries(ledger)) == 1


def test_failing_alike_from_the_start_stops_the_run_and_marks_nothing(tmp_path):
    result, ledger = run(tmp_path, [f"bug {i}" for i in range(8)])
    assert result.status == 2
    assert "3 rows in a row failed alike (ZeroDivisionError" in result.stopped
    assert errors(ledger) == {}
    assert len(tries(ledger)) == 3


def test_ten_alike_in_a_row_stop_the_run_later_and_spare_earlier_failures(tmp_path):
    prompts = ["good", "bug", "good 2"] + [f"wrong {i}" for i in range(12)]
    result, ledger = run(tmp_path, prompts)
    assert "10 rows in a row failed alike" in result.stopped
    assert (result.status, result.done, list(errors(ledger))) == (2, 2, ["bug"])
    assert next(iter(ledger.failures()))["trace"].startswith("Traceback")


def test_wrong_rows_among_good_ones_fail_at_once_and_are_not_tried_again(tmp_path):
    prompts = ["good", "wrong 1", "good 2", "wrong 2"]
    result, ledger = run(tmp_path, prompts)
    assert (result.done, result.failed, result.status) == (2, 2, 1)
    again, _ = run(tmp_path, prompts)
    assert (again.made, again.failed, again.status) == (0, 2, 1)
    assert len(tries(ledger)) == 4
    run(tmp_path, prompts, retry_failed=True)
    assert len(tries(ledger)) == 6


def test_all_rows_wrong_is_status_2(tmp_path):
    result, ledger = run(tmp_path, ["good", "wrong 1"])
    assert result.status == 1
    (tmp_path / "other").mkdir()
    result, ledger = run(tmp_path / "other", ["wrong 1"])
    assert (result.status, len(errors(ledger))) == (2, 1)


def test_full_disk_stops_the_run_marks_nothing_and_is_gone_on_from(tmp_path):
    result, ledger = run(tmp_path, ["good 1", "full", "good 2"])
    assert (result.status, result.done) == (2, 1)
    assert os.strerror(errno.ENOSPC).lower() in result.stopped.lower()
    assert errors(ledger) == {}
    result, _ = run(tmp_path, ["good 1", "good 2"])
    assert (result.status, result.done, result.made) == (0, 2, 1)


def test_out_of_memory_is_tried_once_more_with_branches_in_turn_in_a_new_worker(tmp_path):
    result, ledger = run(tmp_path, ["good", "memory", "memory always", "good 2"])
    assert (result.done, result.failed) == (3, 1)
    assert [(word, stacked) for _, word, stacked in tries(ledger) if word == "memory"] == [
        ("memory", "None"), ("memory", "False"), ("memory", "None"), ("memory", "False"),
    ]  # fmt: skip
    assert "CUDA out of memory" in errors(ledger)["memory always"]
    assert len(events(ledger, "worker started")) == 4


def test_engine_that_cannot_start_stops_the_run_with_its_sentence(tmp_path):
    (tmp_path / "p.txt").write_text("a")
    result = run_batch(tmp_path / "p.txt", tmp_path / "out", workers=WorkerOptions(engine=no_engine))
    assert (result.status, result.failed) == (2, 0)
    assert "a worker cannot open the model: no engine here" in result.stopped


def test_interrupt_ends_the_workers_and_leaves_no_work_behind(tmp_path):
    def stop(tally):
        if tally.done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ["good 1", "good 2", "hang"], watch=stop)
    ledger = Ledger(tmp_path / "out")
    assert not (ledger.folder / "work").exists()
    assert errors(ledger) == {}
    assert events(ledger, "interrupted")


def test_two_runs_at_once_make_every_clip_once_on_disk(tmp_path):
    prompts = [f"good {i}" for i in range(30)]
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    results = []

    def drive():
        workers = WorkerOptions(1, engine=obedient(tmp_path / "out"))
        results.append(run_batch(tmp_path / "p.txt", tmp_path / "out", workers=workers))

    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = Ledger(tmp_path / "out")
    assert [(result.done, result.status) for result in results] == [(30, 0)] * 2
    assert sorted(record["prompt"] for record in ledger.records()) == sorted(prompts)
    files = [path for path in (ledger.folder / "clips").rglob("*") if path.is_file()]
    assert len(files) == 2 * len(prompts)
    assert len((ledger.folder / "manifest.jsonl").read_text().splitlines()) == len(prompts)


def failure(message: str) -> Failure:
    return Failure(Task("clip", message, ()), REFUSED, message)


def test_breaker_takes_names_and_numbers_for_the_same_cause_and_releases_what_is_not():
    breaker = Breaker(Rules(first_alike=3))
    assert breaker.failure(failure("expected 1 in 'a'")) == []
    released = breaker.failure(failure("another thing"))
    assert [one.message for one in released] == ["expected 1 in 'a'"]
    assert breaker.saw_other
    breaker = Breaker(Rules(first_alike=3))
    for i in range(2):
        breaker.failure(failure(f"expected {i} in 'row {i}'"))
    with pytest.raises(BatchError, match="3 rows"):
        breaker.failure(failure("expected 7 in 'b'"))
    assert breaker.release() == []
