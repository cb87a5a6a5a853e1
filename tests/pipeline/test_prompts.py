from dataclasses import replace

import pytest
import torch

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline
from fusionframes.ff_kernels.pipeline.settings import Settings


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_encode_text_empty_prompt_is_refused(folder, prompt):
    with pytest.raises(InputError, match="empty text"):
        Pipeline.from_folder(folder).encode_text([prompt])


def test_encode_text_long_prompt_warns_with_the_number_dropped(folder):
    with pytest.warns(UserWarning, match=r"the last \d+ tokens were dropped"):
        text = Pipeline.from_folder(folder).encode_text(["a large red circle " * 60])
    assert text.context.shape[1] == 128


LONG = "a large blue square bounces on a brown background"


@pytest.fixture
def pipeline(folder):
    pipeline = Pipeline.from_folder(folder)
    return pipeline if pipeline.family == "1.0" else pytest.skip("release 1.1 reads no negative prompt")


def test_negative_prompt_is_cut_as_released_and_counted(pipeline):
    with pytest.warns(UserWarning, match=r"cut to the \d+ tokens of the prompt, .* the last \d+ of its \d+ tokens"):
        text = pipeline.encode_negative([LONG], ["a"])
    assert text.mask.sum() == pipeline.encode_text(["a"]).mask.sum()


def test_mended_negative_prompt_is_read_whole(pipeline):
    settings = Settings(fps="low", width=16, height=24, steps=2)
    mended = replace(settings, is_mended=True)
    read = pipeline.encode_negative([LONG], ["a"], is_mended=True)
    assert torch.equal(read.context, pipeline.encode_text([LONG]).context)
    with pytest.warns(UserWarning, match="the negative prompt is cut"):
        cut = pipeline.sample("a", settings, negative=LONG).keyframes
    whole, short = (pipeline.sample("a", mended, negative=text).keyframes for text in (LONG, "a large"))
    assert not torch.equal(whole, cut)
    assert not torch.equal(whole, short)
