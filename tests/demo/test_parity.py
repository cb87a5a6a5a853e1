"""The demo's pictures on the fast path against the strict one, in float32."""

import pytest
import torch

from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.metrics.fidelity import psnr
from fusionframes.ff_kernels.pipeline.settings import Settings

PROMPT = "a large red circle grows on a white background"


@pytest.fixture(scope="module")
def clips():
    settings = Settings(fps="medium", seed=3, steps=20)
    return {parity: demo_pipeline(parity=parity).generate(PROMPT, settings) for parity in ("strict", "fast")}


def test_frames_of_the_fast_path_are_those_of_the_strict_one(clips):
    # 17 frames, of which every fourth is a decoded keyframe and the others are interpolated.
    strict, fast = clips["strict"].frames, clips["fast"].frames
    assert len(strict) == 17
    assert not torch.equal(strict, fast)
    assert psnr(*(frames.permute(0, 3, 1, 2) for frames in (strict, fast))).min() > 50


def test_keyframes_and_interpolated_latents_of_both_paths_agree(clips):
    for name in ("keyframes", "latents"):
        strict, fast = (getattr(clips[parity], name) for parity in ("strict", "fast"))
        # A signal of 2 (latents of -1..1) over the error: the measure of pictures.
        assert 10 * torch.log10(4 / (strict - fast).square().mean()) > 50
