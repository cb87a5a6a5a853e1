"""The engine of a worker in this process: what it makes is what a single run makes, from prompts encoded before."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import release

from fusionframes.ff_kernels.batch.engine import ClipEngine, ModelOptions, open_pipeline
from fusionframes.ff_kernels.batch.jobs import Job, RowDefaults
from fusionframes.ff_kernels.batch.ledger import Ledger
from fusionframes.ff_kernels.batch.planning import make_plan
from fusionframes.ff_kernels.batch.rows import Row
from fusionframes.ff_kernels.batch.work import CLIP, REFUSED, TEXT, Task, Worker
from fusionframes.ff_kernels.media.pictures import read_image
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.pipeline.writing import write_clip

TINY = Settings(fps="medium", width=64, height=64, steps=1, keyframes=2)


def model_of(folder: Path, family: str) -> ModelOptions:
    release.write(folder, family)
    return ModelOptions(folder, device="cpu", dtype="float32", threads=torch.get_num_threads())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelOptions:
    return model_of(tmp_path_factory.mktemp("model"), "1.0")


def job_of(model: ModelOptions, **columns) -> Job:
    (job,) = make_plan([Row(1, columns, "a red circle", **columns)], open_pipeline(model), RowDefaults(TINY)).jobs
    return job


def make(model: ModelOptions, ledger: Ledger, job: Job) -> Path:
    (ledger.folder / "work").mkdir()
    engine = ClipEngine(model, ledger, "w", ledger.folder / "work")
    engine.do(Task(TEXT, job.text_key, (job,)), lambda *_: None)
    engine.do(Task(CLIP, job.key, (job,)), lambda *_: None)
    return ledger.video(job.key)


@pytest.mark.parametrize("columns", [{}, {"negative": "blue"}], ids=["plain", "negative"])
def test_release_v10_clip_has_the_bytes_of_a_single_run(tmp_path, model, columns):
    ledger = Ledger(tmp_path / "out")
    job = job_of(model, **columns)
    made = make(model, ledger, job)
    write_clip(open_pipeline(model), job.prompt, job.settings, tmp_path / "one.mp4", **columns)
    assert made.read_bytes() == (tmp_path / "one.mp4").read_bytes()


def test_release_v11_clip_from_a_picture_has_the_bytes_of_a_single_run(tmp_path):
    (tmp_path / "model").mkdir()
    model, ledger = model_of(tmp_path / "model", "1.1"), Ledger(tmp_path / "out")
    Image.radial_gradient("L").convert("RGB").resize((64, 64)).save(tmp_path / "start.png")
    job = job_of(model, image=tmp_path / "start.png")
    made = make(model, ledger, job)
    picture = read_image(tmp_path / "start.png")
    write_clip(open_pipeline(model), job.prompt, job.settings, tmp_path / "one.mp4", picture=picture)
    assert made.read_bytes() == (tmp_path / "one.mp4").read_bytes()
    record = ledger.record(job.key)
    assert record["frames"] == 5
    assert record["image"] == str(tmp_path / "start.png")


def test_text_encoder_leaves_before_the_unets_come_and_encoding_loads_no_unet(tmp_path, model):
    ledger = Ledger(tmp_path / "out")
    job = job_of(model)
    (ledger.folder / "work").mkdir()
    engine = ClipEngine(model, ledger, "w", ledger.folder / "work")
    engine.do(Task(TEXT, job.text_key, (job,)), lambda *_: None)
    assert set(engine._pipeline.networks.loaded) == {"text_encoder"}
    engine.do(Task(CLIP, job.key, (job,)), lambda *_: None)
    assert set(engine._pipeline.networks.loaded) == {"keyframe", "interpolation", "movq"}


def test_what_was_warned_of_as_a_prompt_was_encoded_is_in_the_record(tmp_path, model):
    ledger = Ledger(tmp_path / "out")
    job = job_of(model, negative="a small blue square " * 8)
    make(model, ledger, job)
    (warned,) = ledger.record(job.key)["warnings"]
    assert "the negative prompt is cut" in warned


def test_clip_whose_encoded_prompt_is_gone_says_so(tmp_path, model):
    job = job_of(model)
    worker = Worker("w", str(tmp_path / "work"), lambda name, place: ClipEngine(model, Ledger(tmp_path), name, place))
    report = worker.do(Task(CLIP, job.key, (replace(job, text_key="0" * 16),)))
    assert report.kind == REFUSED
    assert "run the batch again" in report.message
