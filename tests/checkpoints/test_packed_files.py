"""Files of folded layers and of weights in 8 bit: they give what folding and rounding at load give."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import weights
from support.weights import OVERRIDES

from fusionframes.ff_kernels.checkpoints.conversion import convert
from fusionframes.ff_kernels.checkpoints.detection import detect
from fusionframes.ff_kernels.checkpoints.folder import find_models
from fusionframes.ff_kernels.checkpoints.loading import check_contents, load, tensors_of
from fusionframes.ff_kernels.checkpoints.packing import MARKER
from fusionframes.ff_kernels.checkpoints.reading import read_contents
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo import WEIGHTS
from fusionframes.ff_kernels.demo.model import DEFAULTS, demo_pipeline
from fusionframes.ff_kernels.errors import CheckpointError
from fusionframes.ff_kernels.ops.rounding import Report, layers_to_round
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.planning import plan_run
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.runtime.plan import Budget

PROMPT = "a small yellow square moves right on a black background"
SETTINGS = Settings(steps=2, fps="medium", width=32, height=32, is_stacked=False)
NETWORKS = {
    "keyframe": "diffusion_models/fusionframes_demo_keyframes.safetensors",
    "interpolation": "diffusion_models/fusionframes_demo_interpolation.safetensors",
    "text_encoder": "text_encoders/fusionframes_demo_text_encoder.safetensors",
}
FORMS = {"folded": (True, False), "8 bit": (False, True), "folded, 8 bit": (True, True)}


@pytest.fixture(scope="module", params=FORMS)
def converted(request, tmp_path_factory):
    """The demo with its large networks converted, how it was, and what rounding did to each."""
    folder, (folds, rounds), reports = tmp_path_factory.mktemp("demo"), FORMS[request.param], {}
    for path in WEIGHTS.rglob("*.*"):
        shutil.copy(path, folder)
    for stage, name in NETWORKS.items():
        # A run rounds U-Nets only.
        if stage != "text_encoder":
            reports[stage] = Report() if rounds else None
            convert(
                WEIGHTS / name, folder / Path(name).name, folds=folds,
                rounding=reports[stage], dtype=torch.float32 if folds else None,
            )  # fmt: skip
    return folder, folds, rounds, reports


def opened(folder: Path, **options) -> Pipeline:
    return Pipeline(find_models(folder), defaults=DEFAULTS, **options)


def test_a_file_gives_the_weights_and_frames_of_folding_and_rounding_at_load(converted):
    folder, folds, rounds, reports = converted
    parity = "fast" if folds else "strict"
    at_load = demo_pipeline(rounds=rounds, parity=parity)
    expected = at_load.generate(PROMPT, SETTINGS)
    for budget in (Budget(), Budget(is_smallest=True)):
        pipeline = opened(folder, budget=budget, parity=parity)
        # Where weights begin in memory, libraries of some processors round by.
        assert (pipeline.generate(PROMPT, SETTINGS).frames - expected.frames).abs().max() < 1e-5
        assert not pipeline.networks.reports
    if rounds:
        assert {stage: vars(report) for stage, report in reports.items()} == {
            stage: vars(report) for stage, report in at_load.networks.reports.items()
        }
        return
    for stage in ("keyframe", "interpolation"):
        made, read = (one.networks.get(stage).network.state_dict() for one in (at_load, opened(folder, parity=parity)))
        assert made.keys() == read.keys()
        for name, value in made.items():
            assert torch.equal(read[name], value), name
            assert value.ndim < 4 or read[name].stride() == value.stride(), name


@pytest.mark.parametrize("stage", ["keyframe", "interpolation"])
def test_weights_of_a_folded_file_lie_in_memory_as_folding_leaves_them(tmp_path, stage):
    convert(WEIGHTS / NETWORKS[stage], tmp_path / "folded.safetensors", folds=True, dtype=torch.float32)
    ours = tensors_of(load(tmp_path / "folded.safetensors", parity="fast").network)
    theirs = tensors_of(load(WEIGHTS / NETWORKS[stage], parity="fast", dtype=torch.float32).network)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name])
        assert tensor.stride() == theirs[name].stride()


def test_clips_of_a_folded_file_are_those_of_folding_at_load_where_sums_depend_on_the_place(tmp_path):
    # At 64 x 64 a processor sums weights otherwise that do not lie at multiples of 16 bytes.
    for path in WEIGHTS.rglob("*.*"):
        shutil.copy(path, tmp_path)
    for stage in ("keyframe", "interpolation"):
        path = tmp_path / Path(NETWORKS[stage]).name
        convert(WEIGHTS / NETWORKS[stage], path, folds=True, dtype=torch.float32)
    settings = replace(SETTINGS, width=64, height=64)
    clips = [pipeline.generate(PROMPT, settings).latents for pipeline in (opened(tmp_path), demo_pipeline())]
    assert torch.equal(*clips)


def test_a_plan_counts_the_bytes_of_the_file(converted):
    folder, _, rounds, _ = converted
    pipeline = opened(folder)
    settings = pipeline.resolve(SETTINGS)
    before = {stage.title: stage.plan for stage in plan_run(pipeline, settings)}
    pipeline.sample(PROMPT, settings)
    loaded = pipeline.networks.loaded
    assert before["keyframes"] == loaded["keyframe"].placed.plan
    assert before["text encoder"] == loaded["text_encoder"].placed.plan
    # The demo's interpolation has one level, which is the outermost: nothing of it is rounded.
    assert {stage: bool(held.blocks.packed) for stage, held in loaded.items()} == {
        "keyframe": rounds, "text_encoder": False, "interpolation": False,
    }  # fmt: skip
    blocks = loaded["keyframe"].blocks
    assert sum(blocks.kept) < (0.6 if rounds else 1.1) * sum(blocks.sizes)


def test_info_and_a_second_conversion_say_what_a_file_is(converted, tmp_path, capsys):
    folder, folds, rounds, _ = converted
    path = folder / Path(NETWORKS["keyframe"]).name
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert ("folded layers" in said, "layers in 8 bit" in said) == (folds, rounds)
    again = ["convert", str(path), str(tmp_path / "again.safetensors"), "--dtype", "float16"]
    assert main(again) == (2 if rounds else 0)
    if rounds:
        assert "which cannot be turned back: take the file that it was made from" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
    else:
        assert read_contents(tmp_path / "again.safetensors").is_folded


@pytest.mark.parametrize("form", ["folded", "8 bit"])
def test_what_needs_layers_as_released_is_refused_in_words(tmp_path, form, capsys):
    path = tmp_path / "keyframes.safetensors"
    convert(
        WEIGHTS / NETWORKS["keyframe"], path, folds=form == "folded", rounding=Report() if form == "8 bit" else None
    )
    contents = read_contents(path)
    words = "expected layers as released for .*which cannot be turned back"
    with pytest.raises(CheckpointError, match=words):
        check_contents(contents, detect(contents))
    if form == "folded":
        with pytest.raises(CheckpointError, match=words):
            load(path, parity="strict")
    else:
        exact, wide = load(WEIGHTS / NETWORKS["keyframe"], dtype=torch.float32).network, load(path).network
        layer = next(iter(layers_to_round(exact)))
        error = (wide.get_submodule(layer).weight - exact.get_submodule(layer).weight).norm()
        assert 0 < error < 0.02 * exact.get_submodule(layer).weight.norm()


@pytest.mark.parametrize("name", ["movq", "projection"])
def test_only_what_gains_by_it_is_folded_or_rounded(tmp_path, name):
    source = weights.save(tmp_path, name)
    with pytest.raises(CheckpointError, match="to round to 8 bit"):
        convert(source, tmp_path / "out.safetensors", overrides=OVERRIDES, rounding=Report())
    with pytest.raises(CheckpointError, match="to fold"):
        convert(source, tmp_path / "out.safetensors", overrides=OVERRIDES, folds=True)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.fixture
def rounded_text(tmp_path):
    path = tmp_path / "text.safetensors"
    convert(WEIGHTS / NETWORKS["text_encoder"], path, rounding=Report())
    return path


def test_a_text_encoder_in_8_bit_passes_through_as_it_stays(rounded_text):
    outs = []
    for budget in (Budget(), Budget(is_smallest=True)):
        models = find_models(WEIGHTS, text_encoder=rounded_text)
        pipeline = Pipeline(models, defaults=DEFAULTS, budget=budget)
        outs.append(pipeline.encode_text([PROMPT]).context)
        assert pipeline.networks.loaded["text_encoder"].blocks.packed
    exact = demo_pipeline().encode_text([PROMPT]).context
    assert torch.equal(*outs)
    assert 35 < 10 * torch.log10(exact.square().sum() / (outs[0] - exact).square().sum()) < 50


def test_markers_are_cores_and_the_table_in_the_metadata_says_the_same(tmp_path, rounded_text):
    tensors = load_file(rounded_text)
    markers = {key: json.loads(bytes(tensors[key].tolist())) for key in tensors if key.endswith(MARKER)}
    assert {marker["format"] for marker in markers.values()} == {"int8_tensorwise"}
    table = {"format_version": "1.0", "layers": {key.removesuffix(f".{MARKER}"): told for key, told in markers.items()}}
    plain = {key: value for key, value in tensors.items() if key not in markers}
    for prefix in ("", "cond_stage_model."):
        layers = {prefix + key: told for key, told in table["layers"].items()}
        named = {prefix + key: value for key, value in plain.items()}
        metadata = {"_quantization_metadata": json.dumps({**table, "layers": layers})}
        save_file(named, tmp_path / "table.safetensors", metadata)
        left, right = read_contents(rounded_text), read_contents(tmp_path / "table.safetensors", "cond_stage_model.")
        assert left.scales.keys() == right.scales.keys()
        assert all(torch.equal(left.scales[key], right.scales[key]) for key in left.scales)
        assert left.tensors.keys() == right.tensors.keys()


@pytest.mark.parametrize(("change", "said"), [
    ({MARKER: torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)}, "'nvfp4'"),
    ({MARKER: torch.tensor(list(b'{"format": "int8_tensorwise", "convrot": true}'), dtype=torch.uint8)}, "rotations"),
    ({MARKER: torch.tensor([1, 2], dtype=torch.uint8)}, "damaged words"),
    ({"weight_scale": torch.ones(3, 1)}, "misshapen"),
    ({"weight_scale": None}, "incomplete"),
])  # fmt: skip
def test_what_is_stored_in_a_way_nobody_knows_is_named(rounded_text, change, said):
    tensors, layer = load_file(rounded_text), "encoder.block.0.layer.0.SelfAttention.q"
    for name, value in change.items():
        tensors[f"{layer}.{name}"] = value
    save_file({key: value for key, value in tensors.items() if value is not None}, rounded_text)
    with pytest.raises(CheckpointError, match=said) as error:
        read_contents(rounded_text)
    assert layer in str(error.value)
