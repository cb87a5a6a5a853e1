import json

import pytest
import torch
from support import release

from fusionframes.ff_kernels.batch.counts import TOKENS, count_clip
from fusionframes.ff_kernels.bench.known_values import KnownValues
from fusionframes.ff_kernels.bench.recorder import record
from fusionframes.ff_kernels.cli.main import main
from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.stages.run import Text

SMALL = {"fps": "low", "width": 32, "height": 32, "keyframes": 2}


@pytest.fixture(scope="module")
def pipeline():
    return demo_pipeline(device="meta", dtype=torch.float16)


def test_count_from_two_steps_is_that_of_all_steps_recorded(pipeline):
    settings = pipeline.resolve(Settings(**SMALL, steps=5, is_stacked=True))
    width = pipeline.models.require("keyframe")[1].config.context_dim

    def all_steps():
        with KnownValues():
            context = torch.zeros(1, TOKENS, width, dtype=torch.float16, device="meta")
            mask = torch.ones(1, TOKENS, dtype=torch.long, device="meta")
            return pipeline.sample_keyframes(Text.of(context, mask), settings)

    # The first run puts the weights where they stay.
    all_steps()
    whole = record(all_steps, pipeline.network("keyframe").network)
    keyframes, decoding = count_clip(pipeline, settings)
    assert (keyframes.stage, decoding.stage) == ("keyframes", "decoding")
    assert keyframes.flops == pytest.approx(whole.flops, rel=1e-3)
    assert keyframes.bytes == pytest.approx(whole.bytes, rel=1e-3)


def test_release_v11_counts_its_first_frame_and_fewer_steps_of_interpolation(tmp_path):
    release.write(tmp_path, "1.1")
    pipeline = Pipeline.from_folder(tmp_path, device="meta")
    settings = pipeline.resolve(Settings(fps="medium", width=64, height=64, keyframes=2, steps=20))
    counts = {count.stage: count for count in count_clip(pipeline, settings)}
    assert list(counts) == ["first frame", "keyframes", "interpolation 1", "decoding"]
    assert all(count.flops > 0 and count.seconds["H200"] > 0 for count in counts.values())


def test_dry_run_names_wrong_rows_counts_the_rest_and_writes_nothing(tmp_path, capsys):
    rows = [{"prompt": "a red circle", "seed": i, "tag": "x"} for i in (1, 2, 2)] + [{"prompt": "a", "width": 3}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({**SMALL, "steps": 2, **row}) + "\n" for row in rows))
    assert main(["batch", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "out"), "--dry-run"]) == 1
    said = capsys.readouterr().out
    assert "4 rows: 2 different clips, 2 of them to make, 1 rows wrong" in said
    assert "row 4: " in said
    assert "width" in said
    assert "go into the records: tag" in said
    assert "2 clips of 2 frames of 32 x 32" in said
    assert "H200" in said
    assert not (tmp_path / "out").exists()
