import re
from dataclasses import fields, replace

import pytest
import torch
from PIL import Image
from support import release

from fusionframes.ff_kernels.batch import jobs
from fusionframes.ff_kernels.batch.engine import ModelOptions, open_pipeline
from fusionframes.ff_kernels.batch.jobs import HOW, RowDefaults, drawn_settings
from fusionframes.ff_kernels.batch.planning import make_plan
from fusionframes.ff_kernels.batch.rows import Row
from fusionframes.ff_kernels.checkpoints.fingerprints import weights_fingerprint
from fusionframes.ff_kernels.checkpoints.lora import write_lora
from fusionframes.ff_kernels.checkpoints.reading import Contents
from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings


def row(number=1, **settings):
    return Row(number, {"prompt": "a", **settings}, "a", settings)


@pytest.fixture(scope="module")
def pipeline():
    return demo_pipeline()


def keys_of(rows, pipeline, **defaults):
    return [job.key for job in make_plan(rows, pipeline, RowDefaults(**defaults)).jobs]


CHANGES = {"steps": 3, "seed": 1, "fps": "low", "width": 72, "guidance_scale": 1.5, "is_mended": True, "keyframes": 4,
           "motion_score": 50, "interpolation_guidance": 0.1}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_changed_setting_makes_a_new_key(pipeline, name):
    first, second = keys_of([row(), row(**{name: CHANGES[name]})], pipeline)
    assert first != second


def test_changed_model_precision_negative_and_decoder_make_new_keys(pipeline):
    plain = row()
    others = [
        keys_of([plain], demo_pipeline(dtype=torch.bfloat16)),
        keys_of([plain], demo_pipeline(parity="strict")),
        keys_of([replace(plain, negative="b")], pipeline),
        keys_of([replace(plain, decoder="video")], pipeline),
        keys_of([replace(plain, prompt="a ")], pipeline),
    ]
    assert len({*keys_of([plain], pipeline), *(key for (key,) in others)}) == 6


def test_defaults_spelled_out_and_how_to_compute_change_no_key(pipeline):
    default = pipeline.resolve(Settings())
    spelled = {f.name: getattr(default, f.name) for f in fields(Settings) if getattr(default, f.name) is not None}
    plan = make_plan([row(1), row(2, **spelled), row(3, is_stacked=False)], pipeline, RowDefaults())
    (job,) = plan.jobs
    assert [label["id"] for label in job.labels] == [1, 2, 3]
    assert set(HOW) <= set(vars(default))


def test_field_added_to_the_settings_later_leaves_old_keys_alone():
    assert drawn_settings(Settings()) == {}
    assert drawn_settings(Settings(seed=3, is_stacked=True)) == {"seed": 3}


def test_key_names_the_sampler(pipeline, monkeypatch):
    (before,) = keys_of([row()], pipeline)
    monkeypatch.setattr("fusionframes.ff_kernels.batch.planning.SAMPLER_VERSION", jobs.SAMPLER_VERSION + 1)
    assert keys_of([row()], pipeline) != [before]


def test_wrong_rows_are_refused_before_a_network_is_loaded(pipeline, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [
        row(1, width=65),
        replace(row(2), image=tmp_path / "broken.png"),
        replace(row(3), image=tmp_path / "absent.png"),
        Row(4, {"seed": 1}, problem="expected a prompt"),
        row(5),
    ]
    pipeline = demo_pipeline()
    plan = make_plan(rows, pipeline, RowDefaults())
    patterns = [
        (1, r"width.*got 65"),
        (2, r"broken\.png'.* damaged"),
        (3, r"absent\.png'.*no such file"),
        (4, "a prompt"),
    ]
    for refusal, (number, pattern) in zip(plan.refusals, patterns, strict=True):
        assert refusal.row.number == number
        assert re.search(pattern, refusal.problem), refusal.problem
    assert len(plan.jobs) == 1
    assert not pipeline.networks.loaded


def test_shards_part_the_rows(pipeline):
    plan = make_plan([row(i, seed=i) for i in range(60)] + [row(99, width=1)], pipeline, RowDefaults())
    parts = [plan.shard(i, 4).keys for i in range(4)]
    assert sorted(key for part in parts for key in part) == sorted(plan.keys)
    assert all(part for part in parts)


def test_picture_belongs_to_the_key_by_its_content(tmp_path):
    release.write(tmp_path, "1.1")
    pipeline = Pipeline.from_folder(tmp_path, defaults=Settings(fps="low", width=64, height=64))
    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    plan = make_plan([replace(row(), image=tmp_path / f"{name}.png") for name in "abc"], pipeline, RowDefaults())
    assert [len(job.labels) for job in plan.jobs] == [2, 1]
    assert keys_of([row()], pipeline)[0] not in plan.keys


def contents(tmp_path, **tensors):
    return Contents(tmp_path, tensors, {})


def test_fingerprint_is_of_content_and_sees_any_whole_tensor_change(tmp_path):
    big, small = torch.arange(1e5).reshape(100, 1000), torch.ones(3, dtype=torch.bfloat16)
    base = weights_fingerprint(contents(tmp_path, a=big, b=small))
    assert base == weights_fingerprint(contents(tmp_path / "copy", b=small.clone(), a=big.clone()))
    others = [
        contents(tmp_path, a=big * 1.001, b=small),
        contents(tmp_path, a=big, b=small * 2),
        contents(tmp_path, a=big.reshape(1000, 100), b=small),
        contents(tmp_path, a=big, c=small),
        contents(tmp_path, a=big, b=small.float()),
        contents(tmp_path, a=big),
    ]
    assert len({base, *map(weights_fingerprint, others)}) == 1 + len(others)


def test_negative_prompt_that_is_mended_is_another_text(pipeline):
    rows = [row(1), row(2, is_mended=True)]
    rows += [replace(row(3), negative="b"), replace(row(4, is_mended=True), negative="b")]
    plain, mended, cut, whole = (job.text_key for job in make_plan(rows, pipeline, RowDefaults()).jobs)
    assert plain == mended
    assert len({plain, cut, whole}) == 3


def test_lora_and_its_strength_make_new_keys(tmp_path, pipeline):
    contents, kind = pipeline.models.files["keyframe"]
    name = "down_samples.1.self_attention_block.attention.to_query"
    weight = contents.tensors[f"{name}.weight"]
    path = tmp_path / "motion.safetensors"
    write_lora(path, {name: (torch.ones(len(weight), 1), torch.ones(1, weight.shape[1]))}, 1.0, kind, {})
    options = [ModelOptions(dtype="float32", loras=((path, strength),)) for strength in (0.0, 0.5, 1.0)]
    keys = [keys_of([row()], open_pipeline(each, device="cpu"))[0] for each in options]
    assert keys[0] == keys_of([row()], pipeline)[0]
    assert len(set(keys)) == 3
