import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from fusionframes.ff_kernels.cli.batch import shard_of
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.errors import InputError

PROMPT = "a large purple triangle moves up on a white background"
QUICK = ["--fps", "low", "--width", "16", "--height", "16", "--steps", "1", "--keyframes", "2", "--device", "cpu"]


def test_batch_makes_a_manifest_and_packs_and_a_second_run_makes_nothing(tmp_path, capsys):
    rows = [{"prompt": PROMPT, "split": "test"}, {"prompt": PROMPT, "seed": 1, "keyframes": 1}, {"prompt": ""}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["batch", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "out"), *QUICK]
    assert main([*asked, "--pack", "tar"]) == 1
    said = capsys.readouterr()
    assert "2 of 3 clips, 2 of them now, 1 failed" in said.out
    assert "row 3: expected a prompt" in said.err
    assert main(asked) == 1
    assert "2 of 3 clips, 0 of them now, 1 failed" in capsys.readouterr().out
    manifest = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert sorted((row["id"], row["frames"], row.get("row.split")) for row in manifest) == [
        (1, 2, "test"),
        (2, 1, None),
    ]
    with tarfile.open(tmp_path / "out" / "packs" / "clips-00000.tar") as tar:
        assert sorted(name.split(".")[1] for name in tar.getnames()) == ["json", "json", "mp4", "mp4"]
    (tmp_path / "out" / "manifest.jsonl").unlink()
    assert main(["batch", "-o", str(tmp_path / "out"), "--status"]) == 1
    assert "2 done, 1 failed; manifest.jsonl" in capsys.readouterr().out
    assert (tmp_path / "out" / "manifest.jsonl").exists()
    assert main([*asked, "--status"]) == 1
    assert "of p.jsonl 2 of 3 done, 0 missing" in capsys.readouterr().out


def test_row_that_was_wrong_and_is_mended_leaves_no_failure_behind(tmp_path, capsys):
    prompts = tmp_path / "p.csv"
    prompts.write_text(f"prompt,seed\n{PROMPT},one\n")
    asked = ["batch", str(prompts), "-o", str(tmp_path / "out"), *QUICK]
    assert main(asked) == 2
    assert len(list((tmp_path / "out" / "failed").iterdir())) == 1
    prompts.write_text(f"prompt,seed\n{PROMPT},1\n")
    assert main(asked) == 0
    assert list((tmp_path / "out" / "failed").iterdir()) == []


def test_interrupted_run_says_how_to_go_on_with_status_130(tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(f"{PROMPT} {i}" for i in range(40)))
    asked = [
        sys.executable,
        "-m",
        "fusionframes.ff_kernels",
        "batch",
        str(tmp_path / "p.txt"),
        "-o",
        str(tmp_path / "out"),
    ]
    run = subprocess.Popen([*asked, *QUICK], stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 120
    while not list((tmp_path / "out").glob("clips/*/*.json")):
        assert run.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    # As the keyboard does it: to the driver and its workers.
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said.splitlines()[-1] == "fusionframes: interrupted; the same command goes on where it stopped"
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "work").exists()


WRONG = {
    "no_prompts": ([], "a file of prompts"),
    "absent": (["absent.txt"], "absent.txt"),
    "status": (["--status"], "found none at 'out'"),
    "shard": (["p.txt", "--shard", "4/4"], "'4/4'"),
    "auto": (["p.txt", "--shard", "auto"], "found none"),
    "device": (["p.txt", "--device", "abacus"], "abacus"),
    "model": (["p.txt", "--model", "nowhere"], "nowhere"),
    "workers": (["p.txt", "--workers", "-1"], "at least one worker"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_command_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    for variable in ("SLURM_ARRAY_TASK_ID", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "p.txt").write_text(PROMPT)
    arguments, named = WRONG[name]
    assert main(["batch", *arguments, "-o", "out"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fusionframes: ")]
    assert len(lines) == 1
    assert named in lines[0]


PLACES = {
    "array_from_one": (
        {"SLURM_ARRAY_TASK_ID": "16", "SLURM_ARRAY_TASK_COUNT": "16", "SLURM_ARRAY_TASK_MIN": "1"},
        (15, 16),
    ),
    "array": ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0"}, (0, 4)),
    "torchrun": ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
    "srun": ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (1, 2)),
}


@pytest.mark.parametrize("name", PLACES)
def test_shard_auto_reads_where_it_runs(name):
    variables, shard = PLACES[name]
    assert shard_of("auto", variables) == shard


def test_shard_by_hand_is_counted_from_zero():
    assert shard_of("0/3", {}) == (0, 3)
    assert shard_of(None, {}) is None
    with pytest.raises(InputError, match="count parts from 0"):
        shard_of("3/3", {})
