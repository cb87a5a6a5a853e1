"""On a device that counts its bytes every stage stays under its plan, and computes what it computes with room."""

import gc
import shutil
from pathlib import Path

import pytest
import torch
from support import soroban

from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.errors import CheckpointError, DeviceError
from fusionframes.ff_kernels.pipeline.needs import keyframe_batch, unet_need
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.planning import plan_run
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.runtime.plan import Budget

PROMPT = "a large purple triangle moves up on a white background"
SETTINGS = Settings(steps=2, fps="medium", is_stacked=False)


class Watched:
    """A pipeline of the demo on the counting device, and per stage what its plan expected and what was counted."""

    def __init__(self, vram: int | None = None) -> None:
        self.pipeline = demo_pipeline(device=soroban.NAME, keeps_networks=False, budget=Budget(vram))
        self.counted: list[tuple[str, int, int]] = []
        self.streamed = 0
        networks, self._plan = self.pipeline.networks, None
        placed, movq = networks.placed, networks.movq
        networks.placed = lambda stage, need: self._start(stage, placed, need)
        networks.movq = lambda stage, need: self._start(stage, movq, need)

    def _start(self, stage, make, need):
        self.note()
        gc.collect()
        made = make(stage, need)
        self._plan = stage, made[1] if isinstance(made, tuple) else made.plan
        self.streamed += len(getattr(self._plan[1], "streamed", ()))
        soroban.LEDGER.restart()
        return made

    def note(self):
        if self._plan is not None:
            self.counted.append((self._plan[0], self._plan[1].peak, soroban.LEDGER.peak))
            self._plan = None


@pytest.fixture(scope="module")
def resident():
    return Watched().pipeline.sample(PROMPT, SETTINGS)


@pytest.mark.parametrize(("vram", "streams"), [(None, 0), (9_900_000, 5), (8_100_000, 10)])
def test_every_stage_stays_under_its_plan_and_gives_the_clip_of_a_resident_run(resident, vram, streams):
    watched = Watched(vram)
    clip = watched.pipeline.generate(PROMPT, SETTINGS)
    watched.note()
    assert [stage for stage, _, _ in watched.counted] == ["text_encoder", "keyframe", "interpolation", "movq"]
    for stage, expected, counted in watched.counted:
        assert counted <= expected, stage
        assert vram is None or counted <= vram
    assert watched.streamed >= streams
    assert torch.equal(clip.latents, resident.latents)


def test_a_plan_before_the_run_is_the_plan_of_the_run():
    watched = Watched(8_100_000)
    settings = watched.pipeline.resolve(SETTINGS)
    planned = {stage.title: stage.plan.peak for stage in plan_run(watched.pipeline, settings)}
    watched.pipeline.sample(PROMPT, settings)
    watched.note()
    titles = ("text encoder", "keyframes", "interpolation")
    assert [peak for _, peak, _ in watched.counted] == [planned[title] for title in titles]


def keyframes_in(share: float) -> Pipeline:
    """The demo on the counting device with room for results and a share of the weights of a keyframe step."""
    pipeline = demo_pipeline(device=soroban.NAME)
    settings, networks = pipeline.resolve(SETTINGS), pipeline.networks
    batch = keyframe_batch(settings, pipeline.release, 1, pipeline.latent_size(settings))
    held = networks._open("keyframe")
    need = unet_need(held.network, batch, networks.target("keyframe"), False)
    room = int(held.blocks.step * share) + need.tables + max(need.single, held.blocks.visited)
    networks.budget = Budget(int(room / 0.9) + 1)
    return pipeline


@pytest.mark.parametrize("share", [1.2, 0.9, 0.6, 0.45, 0.3])
def test_keyframes_take_any_share_of_their_weights(share):
    expected, pipeline = None, keyframes_in(share)
    settings, text = pipeline.resolve(SETTINGS), demo_pipeline().encode_text([PROMPT])
    text = type(text)(*(value.to(soroban.NAME) for value in vars(text).values()))
    gc.collect()
    soroban.LEDGER.restart()
    before = soroban.LEDGER.alive
    out = pipeline.sample_keyframes(text, settings)
    plan = pipeline.networks.loaded["keyframe"].placed.plan
    assert bool(plan.streamed) == (share < 1)
    assert soroban.LEDGER.peak - before <= plan.peak
    pipeline.networks.budget = Budget()
    expected = pipeline.sample_keyframes(text, settings)
    assert not pipeline.networks.loaded["keyframe"].placed.plan.streamed
    assert torch.equal(out, expected)


def test_a_budget_below_the_smallest_is_refused_with_it_before_anything_is_loaded():
    pipeline = demo_pipeline(device=soroban.NAME, budget=Budget(3_000_000))
    settings = pipeline.resolve(SETTINGS)
    with pytest.raises(DeviceError, match=r"keyframes: expected a budget of at least \d\.\d\d MB .*got 3\.00 MB"):
        plan_run(pipeline, settings)
    assert pipeline.networks.loaded == {}


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(("harm", "said"), [(cut, "found it changed"), (Path.unlink, "drive")], ids=["cut", "gone"])
def test_a_file_that_changes_while_it_is_streamed_is_named(folder, tmp_path, harm, said):
    shutil.copytree(folder, tmp_path / "model")
    pipeline = Pipeline.from_folder(tmp_path / "model", budget=Budget(is_smallest=True), parity="strict")
    settings = Settings(fps="low", width=16, height=24, steps=3)
    pipeline.generate("a red circle", settings)
    path = pipeline.models.files["text_encoder"][0].path
    harm(path)
    with pytest.raises(CheckpointError, match=said) as raised:
        pipeline.generate("a red circle", settings)
    assert "text_encoder.safetensors" in str(raised.value)
