from dataclasses import replace

import pytest
import torch
from support.tiny import relative

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings

QUICK = Settings(fps="low", width=16, height=24, steps=3)
PROMPT = "a large red circle moves left on a white background"


def test_generate_low_memory_gives_the_same_clip_and_frees_networks(folder):
    settings = replace(QUICK, is_stacked=False)
    expected = Pipeline.from_folder(folder).generate(PROMPT, settings)
    pipeline = Pipeline.from_folder(folder, keeps_networks=False)
    assert torch.equal(pipeline.generate(PROMPT, settings).frames, expected.frames)
    assert len(pipeline.networks.loaded) == 1


def test_pipeline_of_another_parity_is_refused(folder):
    with pytest.raises(InputError, match="strict or fast, got 'exact'"):
        Pipeline.from_folder(folder, parity="exact")


def test_strict_pipeline_keeps_the_names_of_the_release_and_the_fast_one_folds(folder):
    strict, fast = (Pipeline.from_folder(folder, parity=parity) for parity in ("strict", "fast"))
    names = {key: set(p.network("keyframe").network.state_dict()) for key, p in (("strict", strict), ("fast", fast))}
    stored = set(strict.models.files["keyframe"][0].tensors)
    assert names["strict"] <= stored
    assert not names["fast"] <= stored
    clips = [pipeline.generate(PROMPT, QUICK).frames for pipeline in (strict, fast)]
    assert relative(*clips) < 1e-2
