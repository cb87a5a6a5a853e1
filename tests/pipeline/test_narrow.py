import warnings

import pytest
import torch

from fusionframes.ff_kernels.demo.evaluate import true_clips
from fusionframes.ff_kernels.demo.model import demo_pipeline
from fusionframes.ff_kernels.demo.world.scenes import KEYFRAMES
from fusionframes.ff_kernels.pipeline.narrow import LEAST_DB, narrowed
from fusionframes.ff_kernels.pipeline.settings import Settings
from fusionframes.ff_kernels.stages.decoding import decode

NARROW = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def pipeline():
    return demo_pipeline()


@pytest.fixture(scope="module")
def latents(pipeline):
    with torch.inference_mode():
        return pipeline.network("movq").network.encode(true_clips(1, KEYFRAMES)[0] * 2 - 1)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("stage", ["movq", "video_movq"])
@torch.inference_mode()
def test_demo_decoders_show_the_same_pictures_in_16_bit(pipeline, latents, stage, dtype):
    movq = pipeline.network(stage).network
    narrow = narrowed(movq, latents, dtype)
    assert narrow.quant_conv.weight.dtype is dtype
    error = decode(narrow, latents.to(dtype)).float() - decode(movq, latents)
    assert -10 * error.square().mean().log10() > LEAST_DB
    # The decoder that was given is left as it was.
    assert movq.quant_conv.weight.dtype is torch.float32


@torch.inference_mode()
def test_decoder_that_overflows_in_16_bit_stays_in_float32_and_says_so(pipeline, latents):
    movq = pipeline.network("movq").network
    with pytest.warns(UserWarning, match=r"float16 is nan dB from float32, below 50: this clip is decoded in float32"):
        assert narrowed(movq, latents * 1e6, torch.float16) is movq


@torch.inference_mode()
def test_pipeline_decodes_in_the_dtype_asked_for_and_returns_float32(latents):
    wide, narrow = demo_pipeline(), demo_pipeline(decoder_dtype=torch.bfloat16)
    settings = wide.resolve(Settings(fps="low"))
    expected, out = wide.decode(latents, settings), narrow.decode(latents, settings)
    assert out.dtype is torch.float32
    assert 0 < (out - expected).abs().max() < 0.05


def test_float32_is_the_decoder_itself_without_a_probe(pipeline):
    movq = pipeline.network("movq").network
    with warnings.catch_warnings():
        assert narrowed(movq, torch.full((1, 4, 2, 2), float("nan")), torch.float32) is movq
