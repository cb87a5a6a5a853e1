import pytest

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.pipeline.pipeline import Pipeline


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_encode_text_empty_prompt_is_refused(folder, prompt):
    with pytest.raises(InputError, match="empty text"):
        Pipeline.from_folder(folder).encode_text([prompt])


def test_encode_text_long_prompt_warns_with_the_number_dropped(folder):
    with pytest.warns(UserWarning, match=r"the last \d+ tokens were dropped"):
        text = Pipeline.from_folder(folder).encode_text(["a large red circle " * 60])
    assert text.context.shape[1] == 128
